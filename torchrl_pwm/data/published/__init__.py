"""The published data and checkpoints: downloads, shards, and their conversion."""
