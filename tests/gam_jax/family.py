"""The whole family, each with sensible coefficients, for tests that run over all of it."""

import functools

import gam_jax

FAMILY = {
    "gam": functools.partial(gam_jax.gam, rho=0.1, alpha=0.5),
    "accelerated_gam": functools.partial(
        gam_jax.accelerated_gam, rho=0.2, rho_prime=0.05, alpha=0.6, beta=0.5, gamma=0.1
    ),
    "sam": functools.partial(gam_jax.sam, rho=0.05),
    "asam": functools.partial(gam_jax.sam, rho=0.5, adaptive=True),
    "gsam": functools.partial(gam_jax.sam, rho=0.05, gamma=0.2),
    "gradient_norm_penalty": functools.partial(gam_jax.gradient_norm_penalty, strength=0.05),
    "c_flat": gam_jax.c_flat,
    "fad": functools.partial(gam_jax.fad, rho=0.1, alpha=0.5, beta=0.5),
}

HELD = {
    f"{name}, held": functools.partial(factory, interval=2, between="hold", max_ratio=1.0)
    for name, factory in FAMILY.items()
}
"""Every method acting on every second step, its term held between and bounded."""
