"""Studies: comparisons of methods, each tuned with the same budget on validation images, then tested once.

Command: python -m experiments.main compare --config digits
"""

from pathlib import Path

from experiments.config import CompareConfig, DataConfig, GridConfig, ModelConfig
from experiments.optim import Method

_PAPER: tuple[Method, ...] = ("plain", "sam", "gam", "sam+gam", "accelerated_gam")
"""The base optimizer and what the paper compares with it."""
_NOISE = (0.0, 0.2, 0.4, 0.6)

_DIGITS = CompareConfig(
    workdir=Path("runs/digits"),
    data=DataConfig(name="digits", validation=0.6, train_size=400, augment="none"),
    model=ModelConfig(name="mlp"),
    grid=GridConfig(
        learning_rate=(0.01, 0.02, 0.05, 0.1, 0.2),
        weight_decay=(0.0, 3e-3, 1e-2, 2e-2, 3e-2),
        sam_rho=(0.05, 0.1, 0.2, 0.5),
        gam_rho=(0.1, 0.2, 0.5),
        gam_alpha=(0.2, 0.5, 1.0, 2.0),
    ),
    epochs=75,
    batch_size=50,
    noise=(0.0, 0.3),
    trials=25,
    tuning_seeds=2,
    seeds=10,
    measure=("eigenvalues",),
    measure_examples=400,
)
"""400 training images are few, so that the effect of the method is large and a run takes a fraction of a second. The
grid was widened until the best SGD was inside it, on validation data: without strong weight decay SGD fits the wrong
labels, and the comparison would be unfair. SGD tries every point of its grid."""

STUDIES: dict[str, CompareConfig] = {"digits": _DIGITS}
"""Every study by name."""
