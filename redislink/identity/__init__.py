"""Key pairs of parties, and files that only their owner can read."""

from redislink.identity.keypair import Identity, fingerprint, format_public_key

__all__ = ["Identity", "fingerprint", "format_public_key"]
