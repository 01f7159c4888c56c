"""Optimizers as config values: the table of methods, and the optax chains made of it."""
