"""Private helpers: files, processes, optional packages, checkpoints."""
