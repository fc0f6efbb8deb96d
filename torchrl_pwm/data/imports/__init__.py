"""Importers: recorded episodes of one's own, Minari data sets, and HDF5 files in D4RL's layout."""
