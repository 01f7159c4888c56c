"""Rank correlations of flatness and generalization."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.configs import load
from experiments.study.report.statistics import correlate, spearman
from experiments.study.report.study import Study
from experiments.study.report.tables import correlation_table, flatness_table

RNG = np.random.default_rng(3)


def test_spearman_is_scipys_where_both_are_finite():
    x, y = RNG.integers(0, 9, 40).astype(float), RNG.normal(size=40)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    broken = np.where(np.arange(40) % 7 == 0, np.nan, x)
    kept = np.isfinite(broken)
    assert spearman(broken, y) == pytest.approx(spearmanr(x[kept], y[kept]).statistic)
    assert np.isnan(spearman(np.ones(5), y[:5]))


def test_the_interval_is_of_seeds_drawn_anew():
    seeds = RNG.normal(size=(1, 200))
    x, noise = np.tile(seeds, (3, 1)), RNG.normal(size=(1, 200))
    found = correlate(x, x + np.tile(noise, (3, 1)))  # all methods of a seed alike: as sure as 200 networks, not 600
    assert found.low < found.value < found.high
    error = (1 - found.value**2) / np.sqrt(200)
    assert 0.7 < (found.high - found.low) / (2 * 1.96 * error) < 1.5


def runs(config):
    """Final runs in which the top eigenvalue is ten times the gap and twice the accuracy."""
    for noise in config.noise:
        for method, shift in zip(config.methods, (0, 1), strict=True):
            for seed in range(config.seeds):
                number = 1.0 + seed + shift / 2
                stage = {"eigenvalues": [number]}
                about = {"kind": "test", "noise": noise, "method": method, "seed": seed, "half": stage, "end": stage}
                yield about | {"test_accuracy": number / 2, "generalization_gap": number / 10}


def test_tables():
    config = dataclasses.replace(load("digits"), methods=("plain", "gam"), seeds=5, noise=(0.0, 0.3))
    study = Study(config, list(runs(config)), (), {})
    last = correlation_table(study).splitlines()[-1]
    assert last.count("+1.00 (+1.00 to +1.00)") == last.count("-1.00 (-1.00 to -1.00)") == 2
    assert "| 30%          | GAM    | 3.5 ± 0.7" in flatness_table(study, "end")
