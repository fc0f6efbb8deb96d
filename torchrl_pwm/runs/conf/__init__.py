"""Configurations of the runs, as Hydra composes them."""
