"""Tasks of our own on the Newton physics engine; nothing here is imported before a :class:`NewtonEnv` is built."""
