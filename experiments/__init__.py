"""Training runs and comparisons of the gam_jax family; start with ``python -m experiments.main --help``."""
