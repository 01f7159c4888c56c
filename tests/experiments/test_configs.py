"""Every shipped config builds and trains, and no option of a config is without effect."""

import ast
import collections
import contextlib
import dataclasses
import functools
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import tyro

from experiments.common.errors import UserError
from experiments.configs import TRAIN_NAMES, load, load_train, studies
from experiments.data import DATA_SETS, Batch
from experiments.data.catalogue import DataSet
from experiments.data.config import DataConfig
from experiments.few_shot.config import METHODS as FEW_SHOT
from experiments.few_shot.config import FewShotConfig
from experiments.measure.flatness.config import FlatnessConfig, LandscapeConfig
from experiments.models import registry as models
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig
from experiments.optim.methods import METHODS, TUNABLE
from experiments.study import compare
from experiments.study.config import CompareConfig, GridConfig
from experiments.study.search import trials
from experiments.train.config import CheckpointsConfig, DevicesConfig, TrainConfig
from experiments.train.mesh import make_mesh, start
from experiments.train.programs import Programs
from experiments.train.run import run
from experiments.train.setup import assemble, set_up
from experiments.train.state import Sums
from experiments.train.step import evaluation_step, train_step
from tests.experiments.data import tiny_data

ROOT = Path(importlib.import_module("experiments").__file__).parent
FIRST = {}
"""For each network the first config that has it."""
for _name in TRAIN_NAMES:
    FIRST.setdefault(load_train(_name, "plain").model.name, _name)
MEASURED = {"vit_s16", "vit_l16"}
"""Networks whose costs are measured and which no config trains."""
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Of the compiler: slow programs, soon."""
DEEP = ("resnet101", "pyramidnet110")
LONG_TO_COMPILE = ("resnet50", "resnext", "efficientnet_b0", "swin_t")
"""With second derivatives, which compile in minutes each; that they exist is seen by shapes."""
SOON_TRACED = ("mlp", "resnet18", "resnet20", "vit_b32")
"""In full size; the others in the slow tests alone."""


class Mock(NamedTuple):
    """A pipeline without images."""

    data_set: DataSet
    num_train: int = 1000
    steps_per_epoch: int = 10


def shapes(batch_size, image_shape):
    columns = ((batch_size, *image_shape), np.uint8), *(((batch_size,), t) for t in (np.int32, np.int32, np.float32))
    return Batch(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in columns))


def assert_builds(name, method):
    """By shapes alone: the state, a training step that leaves its structure as it is, and an evaluation step."""
    config = load_train(name, method)
    data_set = DATA_SETS[config.data.name].resized(config.data.image_size)
    setup = assemble(config, Mock(data_set))
    state = jax.eval_shape(setup.init)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    batch = shapes(config.batch_size, data_set.image_shape)
    step = functools.partial(train_step, config, setup.seen, setup.chain.value_and_grad, setup.chain.tx)
    kind = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert kind(jax.eval_shape(step, state, batch)) == kind(state)
    evaluated = functools.partial(evaluation_step, setup.model, data_set)
    sums = jax.eval_shape(Sums.zero)
    assert kind(jax.eval_shape(evaluated, state.params, state.model_state, sums, batch)) == kind(sums)


def test_every_network_is_in_a_config():
    assert {*FIRST} | MEASURED == {*models.NAMES} and len(TRAIN_NAMES) == len({*TRAIN_NAMES}) == 1 + 1 + 14 + 5 + 10


@pytest.mark.parametrize("network", SOON_TRACED)
def test_every_network_takes_a_step_in_full_size(network):
    assert_builds(FIRST[network], "plain")


PUBLISHED = {
    # base, learning rate, weight decay, momentum, epochs, steps, batch, label smoothing; the ViTs' settings are ours
    "cifar10_resnet18": ("sgd", 0.1, 5e-4, 0.9, 200, None, 128, 0.1),  # the authors' program
    "cifar100_wrn28_10": ("sgd", 0.1, 5e-4, 0.9, 200, None, 128, 0.1),
    "imagenet_resnet50": ("sgd", 0.1, 1e-4, 0.9, 90, None, 256, 0.0),  # section 5.2.2
    "transfer_cars_efficientnet_b0": ("sgd", 2e-3, 1e-5, 0.9, 1, 40_000, 128, 0.0),  # section 5.2.3
    "transfer_pets_swin_t": ("adamw", 2e-3, 1e-5, 0.9, 1, 40_000, 128, 0.0),
}
RELEASED = {
    # rho, rho', alpha, beta, gamma of the authors' program, whose h- is g0 + (1 - beta) g2
    "cifar10_resnet18": (0.2, 0.03, 0.1, 0.1, 0.05),
    "cifar10_pyramidnet110": (0.2, 0.03, 0.1, 0.1, 0.03),
    "cifar100_resnet18": (0.2, 0.02, 0.6, 0.5, 0.03),
    "cifar100_pyramidnet110": (0.2, 0.04, 0.5, 0.3, 0.05),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_the_published_ones(name):
    config = load_train(name, "plain")
    optim = (config.optim.base, config.optim.learning_rate, config.optim.weight_decay, config.optim.momentum)
    length = (config.epochs, config.steps, config.batch_size)
    assert (*optim, *length, config.label_smoothing) == PUBLISHED[name]


@pytest.mark.parametrize("name", RELEASED)
def test_accelerated_gam_has_the_released_settings(name):
    rho, rho_prime, alpha, beta, gamma = RELEASED[name]
    optim = load_train(name, "accelerated_gam").optim
    found = (optim.gam_rho, optim.sam_rho, optim.gam_alpha, optim.beta, optim.gamma)
    assert found == pytest.approx((rho, rho_prime, alpha, 1 / (2 - beta), gamma * (2 - beta)))


def test_radii_of_sam_are_the_published_ones():
    """Section 3.1 of Foret et al. (2021): 0.05, and 0.1 on CIFAR-100; Kwon et al. (2021): 0.5."""
    found = {name: load_train(name, "sam").optim.sam_rho for name in ("cifar10_resnet18", "cifar100_resnet18")}
    assert found == {"cifar10_resnet18": 0.05, "cifar100_resnet18": 0.1}
    assert load_train("imagenet_resnet50", "sam").optim.sam_rho == 0.05
    assert load_train("cifar10_resnet18", "asam").optim.sam_rho == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_step(method):
    assert_builds("digits", method)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAIN_NAMES)
def test_every_config_takes_a_step_in_full_size(name):
    """With GAM for one config of each network; the others differ in their data and numbers. Deep ones take minutes."""
    network = load_train(name, "plain").model.name
    assert_builds(name, "gam" if FIRST[network] == name and network not in DEEP else "plain")


@pytest.mark.parametrize("name", TRAIN_NAMES)
def test_every_config_comes_back_from_json(name):
    for method in METHODS:
        config = load_train(name, method)
        assert config.optim.method == method and config.workdir is tyro.MISSING
        identity = config.identity()
        assert TrainConfig.of(Path("other"), json.loads(json.dumps(identity))).identity() == identity
        assert DATA_SETS[config.data.name].in_memory <= (config.data.workers == 0)


def trained_tiny(network, method, **changes):
    """Two real steps of a network of a quarter of its width on images of 32 x 32 pixels."""
    config = load_train(FIRST[network], method)
    model = dataclasses.replace(config.model, width=0.25, dtype="float32", **changes)
    config = dataclasses.replace(config, batch_size=4, model=model, steps=2)
    data_set = DATA_SETS[config.data.name].resized(32)
    setup = assemble(config, Mock(data_set))
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(4, *data_set.image_shape), dtype=np.uint8)
    batch = Batch(image, np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32), np.ones(4, np.float32))
    before = jax.jit(setup.init, compiler_options=QUICK)()
    step = functools.partial(train_step, config, setup.seen, setup.chain.value_and_grad, setup.chain.tx)
    step = jax.jit(step, compiler_options=QUICK)
    return before, step(step(before, batch), batch)


def assert_trained(before, after):
    assert int(after.broken) == -1 and float(after.sums.examples) == 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
    moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (after.params, before.params)), strict=True)]
    assert np.mean(moved) > 0.9  # where a warm-up or a ReLU has not let a gradient through


@pytest.mark.parametrize("network", ["resnet20", "vit"])
def test_two_real_steps(network):
    assert_trained(*trained_tiny(network, "plain", depth=1))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet18", "vit", *LONG_TO_COMPILE])
def test_two_real_steps_in_full_depth(network):
    assert_trained(*trained_tiny(network, "plain"))


@pytest.mark.slow
@pytest.mark.parametrize("network", [name for name in FIRST if name not in ("mlp", *DEEP, *LONG_TO_COMPILE)])
def test_two_real_steps_of_gam(network):
    assert_trained(*trained_tiny(network, "gam"))


FAMILIES = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "tables", "benchmarks"}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_docstring_of_a_family_has_a_command_that_is_right(family):
    module = importlib.import_module(f"experiments.configs.{family}")
    names = {"train": {*TRAIN_NAMES}, "compare": {*studies.STUDIES}}
    ((command, config),) = re.findall(
        r"^Command: python -m experiments.main (train|compare) --config (\w+)", module.__doc__, re.M
    )
    own = {*studies.STUDIES} if module is studies else {*module.NAMES}
    assert config in own <= names[command] and "Expected" in module.__doc__


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data sets of the studies, tiny."""
    folder = tmp_path_factory.mktemp("tfds")
    for name in ("fashion_mnist", "cifar10"):
        tiny_data.prepare(folder, name, {"train": 40, "test": 8}, "PNG")
    tiny_data.write_pacs(folder)
    return folder


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_study_builds(folder, name):
    """With every trial of every method; and a run of its base optimizer takes a step, by shapes alone."""
    study = load(name)
    assert study.workdir == Path("runs", name)
    if study.data.name != "digits":
        study = dataclasses.replace(
            study, batch_size=8, data=dataclasses.replace(study.data, folder=folder, train_size=16)
        )
    compare.check(study)
    config = study.run(study.methods[0], trials(study, study.methods[0])[0], study.noise[-1], seed=1)
    setup = set_up(config)
    step = functools.partial(train_step, config, setup.seen, setup.chain.value_and_grad, setup.chain.tx)
    batch = shapes(config.batch_size, setup.pipeline.data_set.image_shape)
    state = jax.eval_shape(setup.init)
    assert jax.tree.structure(jax.eval_shape(step, state, batch)) == jax.tree.structure(state)


CONFIGS = (TrainConfig, DataConfig, ModelConfig, OptimConfig, DevicesConfig, CheckpointsConfig)
_CHECKS = r"(dataclasses|json|experiments(\.\w+)+\.config|experiments\.models\.registry)$"
NOT_A_USE = re.compile(rf"{_CHECKS}|(jax|tests)(\.|$)")
"""Modules that read fields to check, copy or store them, whatever they are."""


@contextlib.contextmanager
def recorded_reads():
    """The fields of configs that are read inside, by class."""
    seen = collections.defaultdict(set)

    def watch(cls):
        def read(self, name):
            module = sys._getframe(1).f_globals["__name__"]
            if not NOT_A_USE.match(module):
                seen[cls].add(name)
            return object.__getattribute__(self, name)

        return read

    with pytest.MonkeyPatch.context() as patched:
        for cls in CONFIGS:
            patched.setattr(cls, "__getattribute__", watch(cls), raising=False)
        yield seen


def test_every_field_of_a_training_run_is_read(tmp_path):
    arguments: Any = {"epochs": 1, "batch_size": 200, "checkpoints": CheckpointsConfig(every=1)}
    data = DataConfig(name="digits", train_size=200)
    with recorded_reads() as seen:
        digits = TrainConfig(
            workdir=tmp_path / "run",
            data=data,
            model=ModelConfig(name="mlp", hidden=(2,)),
            optim=load_train("digits", "plain").optim,
            **arguments,
        )
        run(digits, "command")
        for method in METHODS:
            set_up(dataclasses.replace(digits, optim=load_train("digits", method).optim))
        for network in ("vit", "efficientnet_b0"):
            model = ModelConfig(name=network, pretrained=tmp_path / "absent" if network != "vit" else None)
            setup = assemble(dataclasses.replace(digits, model=model), Mock(DATA_SETS["cifar10"]))
            jax.eval_shape(setup.init)
            programs = Programs(setup, make_mesh(DevicesConfig(), 8))
        programs._method.task.weights = lambda seed: ({}, {})
        with pytest.raises(UserError, match="must be a .safetensors file"):
            programs.create()
        with pytest.raises(UserError, match="cifar10 is not in"):
            set_up(dataclasses.replace(digits, data=DataConfig(name="cifar10", folder=tmp_path)))
        with pytest.raises(UserError, match="finds no other processes"):
            start(DevicesConfig(multihost=True))
    unread = {cls.__name__: {field.name for field in dataclasses.fields(cls)} - seen[cls] for cls in CONFIGS}
    assert unread == {cls.__name__: set() for cls in CONFIGS}


def test_every_field_of_the_other_commands_is_named_in_the_code():
    """In an attribute access outside the modules of the configs, or as a hyper-parameter in the table of methods."""
    sources = [path for path in ROOT.rglob("*.py") if path.name != "config.py"]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text()))]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | TUNABLE
    used |= {name for method in FEW_SHOT.values() for name in method.own}
    for cls in (CompareConfig, GridConfig, FlatnessConfig, LandscapeConfig, FewShotConfig):
        assert {field.name for field in dataclasses.fields(cls)} <= used
