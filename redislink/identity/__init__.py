"""Key pairs of parties, and files that only their owner can read."""
