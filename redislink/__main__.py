"""``python -m redislink`` is the same as ``redislink``."""

from redislink.cli import main

if __name__ == "__main__":
    main()
