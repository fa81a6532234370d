"""What trained methods share: reading text without padding, the loop, checkpoints, the result folder."""
