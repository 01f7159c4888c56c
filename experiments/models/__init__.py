"""Networks as pure functions; :mod:`experiments.models.registry` makes the one that a config names."""
