"""Measures redislink against SPU's own links: ``python -m benchmarks``, or ``make bench``.

Nothing here is part of the package that users install.
"""
