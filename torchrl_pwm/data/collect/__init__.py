"""Collection from simulators: behaviours, SAC, whole data sets, and recordings of policies."""
