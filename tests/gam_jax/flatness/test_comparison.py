"""Several networks in one call: the numbers are those of the single measurements, the table and pictures show them."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import flatness

KEY = jax.random.key(0)
FEW = dict(radii=[0.1, 0.3], num_steps=4, num_restarts=1, k=2, num_probes=3, density_probes=2, density_steps=5)
FEW |= dict(num_lines=2, x=[-1, 0, 1], filter_axis=lambda path, leaf: -1 if leaf.ndim > 1 else None)


def network(seed=0):
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4), "v": rng.normal(size=(4, 1))}
    data = {"x": np.random.default_rng(9).normal(size=(7, 3)), "y": np.ones((7, 1))}
    return [jax.tree.map(np.float32, tree) for tree in (params, data)]


def network_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"][None])
    return jnp.mean((hidden @ params["v"] - batch["y"]) ** 2)


def loss_with_state(params, batch, offset):
    return network_loss(params, {**batch, "y": batch["y"] + offset})


@pytest.fixture(scope="module")
def compared():
    one, data = network()
    two, _ = network(1)
    own = {"one": {"offset": jnp.zeros(())}, "two": {"offset": jnp.ones(())}}
    networks = {"one": one, "two": two}
    return flatness.compare(networks, loss_with_state, [data], key=KEY, own_args=own, **FEW), networks, data


def test_numbers_are_those_of_the_single_measurements(compared):
    found, networks, data = compared
    assert found.radii == [0.1, 0.3] and [*found.networks] == ["one", "two"]
    for offset, (name, params) in enumerate(networks.items()):
        loss = lambda p, offset=offset: loss_with_state(p, data, float(offset))  # noqa: E731
        of, got = (loss, params, None), found.networks[name]
        ascent = dict(key=KEY, num_steps=4, num_restarts=1)
        for order, fields in (("zeroth", got.zeroth_order), ("first", got.first_order)):
            expected = [getattr(flatness, f"{order}_order_flatness")(*of, r, **ascent).value for r in (0.1, 0.3)]
            np.testing.assert_allclose([one.value for one in fields], expected, rtol=1e-4)
        gradient = jax.grad(loss)(params)
        norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
        np.testing.assert_allclose([got.loss, got.gradient_norm], [loss(params), norm], rtol=1e-5)
        top = flatness.hessian_top_eigenvalues(*of, 2, key=KEY)
        np.testing.assert_allclose(got.eigenvalues.values, top.values, rtol=1e-4)
        trace = flatness.hessian_trace(*of, key=KEY, num_probes=3)
        np.testing.assert_allclose(got.trace.value, trace.value, rtol=1e-4)
        assert got.density is not None and got.density.nodes.shape == (2, 5)
        directions = flatness.filter_normalized_directions(params, key=KEY, filter_axis=FEW["filter_axis"])
        for direction, line in zip(directions, got.lines, strict=True):
            expected = flatness.loss_slice(*of, direction, x=[-1, 0, 1]).values
            np.testing.assert_allclose(line.values, expected, rtol=1e-4)
    assert all(one.maximizer is None for one in found.networks["one"].first_order)


def test_the_table_has_a_row_for_each(compared):
    found, _, _ = compared
    header, *rows = str(found).split("\n")
    assert header.split("  ")[-1] == "R1 (0.3)" and [row.split()[0] for row in rows] == ["one", "two"]
    for row, got in zip(rows, found.networks.values(), strict=True):
        assert row.split()[1] == f"{got.loss:.4g}" and row.split()[-1] == f"{got.first_order[1].value:.4g}"
        assert f"{got.trace.value:.4g} ± {got.trace.standard_error:.2g}" in row
    assert len({len(line) for line in (header, *rows)}) == 1


def test_pictures_show_what_was_measured(compared):
    import matplotlib.pyplot as plt

    found, _, _ = compared
    figures = found.figures()
    assert [*figures] == ["radii", "eigenvalues", "density", "lines"]
    drawn = {name: [line for axis in figure.axes for line in axis.lines] for name, figure in figures.items()}
    curves = [line.get_ydata() for line in drawn["radii"] if line.get_label() in ("one", "two")]
    values = [[m.value for m in getattr(one, order)] for order in Flat for one in found.networks.values()]
    np.testing.assert_allclose(curves, values)
    means = [line.get_ydata() for line in drawn["lines"] if line.get_label() in ("one", "two")]
    losses = [np.mean([line.values for line in one.lines], axis=0) for one in found.networks.values()]
    np.testing.assert_allclose(means, losses)
    for line in drawn["density"]:  # the share of all eigenvalues is 1, and the axis shows where they are
        x, y = line.get_data()
        np.testing.assert_allclose(np.trapezoid(y, x), 1, rtol=1e-3)
        low, high = line.axes.get_ylim()
        assert y.max() < high and (y > low).any() and high / low == pytest.approx(3e7)
    for figure in figures.values():
        figure.canvas.draw()
        plt.close(figure)


Flat = ("zeroth_order", "first_order")


def test_less_can_be_measured_and_drawn(compared):
    _, networks, data = compared
    less = FEW | dict(density_probes=0, num_lines=0)
    found = flatness.compare(networks, network_loss, [data], key=KEY, **less)
    assert found.networks["one"].density is None and found.networks["one"].lines == []
    assert [*found.figures()] == ["radii", "eigenvalues"]


def test_without_matplotlib(compared, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install 'gam-jax\[plot\]'"):
        compared[0].figures()


def test_errors_name_the_network_before_anything_is_measured(compared):
    _, networks, data = compared

    def never(params, batch):
        raise AssertionError("measured")

    bad = {**networks, "bad": {"w": "x"}}
    with pytest.raises(TypeError, match=r"networks\['bad'\]: params must .* got params\['w'\]='x'"):
        flatness.compare(bad, never, [data], key=KEY, **FEW)
    with pytest.raises(ValueError, match=r"networks\['one'\]: k must be at most 20"):
        flatness.compare(networks, never, [data], key=KEY, **(FEW | dict(k=21)))
    with pytest.raises(ValueError, match=r"networks\['one'\]: the loss must be finite"):
        flatness.compare(networks, lambda p, b: network_loss(p, b) * jnp.nan, [data], key=KEY, **FEW)
