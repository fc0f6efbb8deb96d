"""Episodes on disk: one file of steps, its manifest, statistics, and the writer."""
