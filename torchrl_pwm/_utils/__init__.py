"""Private helpers: files, checkpoints, processes, seeds, optional packages, private names of TorchRL."""
