"""One training run: its state, its steps, its checkpoints and its metrics, on any number of devices."""
