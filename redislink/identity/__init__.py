"""Who a party is: its key pair, and files that only their owner can read."""
