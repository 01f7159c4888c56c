"""Strangers' studies: whatever a record holds, it is refused where it is read, or a report is made of it."""

import dataclasses
import json
import re

import pytest

from experiments.common.errors import UserError
from experiments.configs import load
from experiments.study.plan import plan
from experiments.study.report import evidence
from experiments.study.report.choices import strength_table
from experiments.study.report.claims import paper_table
from experiments.study.report.report import write_csv, write_markdown
from experiments.study.report.study import read_study, tasks

FLAT = {"eigenvalues": [2.0, 1.0], "trace": 3.0, "trace_standard_error": 0.1, "R0": [0.1], "R1": [0.2]}
LEFT = {
    "cost": {"flops_per_step": 10.0},
    "tune": {"diverged": False, "seconds": 1.0, "validation_accuracy": 0.9, "validation_loss": 0.3},
    "test": {
        **{"diverged": False, "seconds": 1.0, "test_accuracy": 0.9, "test_loss": 0.4, "train_accuracy": 1.0},
        **{"train_loss": 0.1, "generalization_gap": 0.3, "half": FLAT, "end": FLAT},
    },
}
"""What a run leaves, by its kind, beside its hyper-parameters."""
CHOSEN = {"learning_rate": 0.1, "weight_decay": 0.0, "gam_rho": 0.1, "gam_alpha": 0.5}
SESSION = {"kind": "session", "command": "python", "started": "now", "hardware": "one core", "python": "3"}
CONFIG = dataclasses.replace(
    load("digits"),
    **{"methods": ("plain", "gam"), "noise": (0.0,), "seeds": 2, "trials": 1, "tuning_seeds": 1},
    **{"measure": ("eigenvalues", "trace", "flatness"), "rho": (0.1,), "k": 2},
)
RECORDS = [SESSION, *(task | LEFT[task["kind"]] | {"hyperparameters": CHOSEN} for task in plan(CONFIG))]
FIRST = {kind: [record["kind"] for record in RECORDS].index(kind) for kind in ("session", *LEFT)}


def study(folder, records=RECORDS, made_with=(("jax", "0"), ("source", "0"))):
    """Writes a study, and reads it again."""
    about = {"config": CONFIG.identity(), "made_with": dict(made_with) if isinstance(made_with, tuple) else made_with}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_study(folder)


def spoilt(number, path, value):
    """The records with another value at a path of one of them; ... removes it."""
    records = json.loads(json.dumps(RECORDS))
    *path, last = path
    place = records[number]
    for name in path:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return records


def report(found, folder):
    """Everything that is written of a study; the pictures are made of the same numbers."""
    return (
        write_csv(found).read_text()
        + write_markdown(found, []).read_text()
        + evidence.write([found], folder, [], "report").read_text()
        + strength_table(tasks([found]))
        + paper_table([found])
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["session", *LEFT])
def test_whatever_a_field_holds_is_refused_or_reported(tmp_path, kind):
    number = FIRST[kind]
    names = [(name,) for name in RECORDS[number]]
    names += [(name, inner) for name, tree in RECORDS[number].items() if isinstance(tree, dict) for inner in tree]
    refused = 0
    for path in names:
        for value in (..., None, "x", True, 7, -1.5, [], {}, [[]], ["x", "x"], {"a": 1}, [None, None]):
            try:
                found = study(tmp_path, spoilt(number, path, value))
            except UserError as error:
                said = str(error)
                named = re.search(rf"results.jsonl, line {number + 1}, .*({path[-1]}|none of this study's)", said)
                assert named or re.search("is not finished|has hyperparameters = .* expected those of a trial", said)
                assert "\n" not in said
                refused += 1
            else:
                report(found, tmp_path)
    assert refused > 4 * len(names)


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("session", ("command",), ["rm"], "line 1, has command = ['rm'], expected a text"),
        ("cost", ("flops_per_step",), "1", "line 2, has flops_per_step = '1', expected a number above 0, or null"),
        ("tune", ("hyperparameters",), None, "has hyperparameters = None, expected an object with 'learning_rate'"),
        ("tune", ("hyperparameters", "weight_decay"), "0", "has hyperparameters.weight_decay = '0', expected a number"),
        ("tune", ("validation_accuracy",), 90, "has validation_accuracy = 90, expected a number in [0, 1]"),
        ("test", ("diverged",), True, "line 6, whose diverged is true, has test_accuracy = 0.9, expected null"),
        ("test", ("diverged",), 0, "has diverged = 0, expected true or false"),
        ("test", ("seconds",), ..., "has no 'seconds', expected a number of at least 0"),
        ("test", ("end",), None, "has end = None, expected an object with 'eigenvalues', "),
        ("test", ("half", "R1"), [], "has half.R1 = [], expected a list of 1, each a number, or null"),
        ("test", ("kind",), "tests", "has kind = 'tests', expected 'session' or 'cost' or 'tune' or 'test'"),
    ],
)
def test_the_error_names_line_field_and_value(tmp_path, kind, path, value, message):
    records = spoilt(FIRST[kind], path, value)
    if path == ("kind",):
        records.append(RECORDS[FIRST[kind]])
    with pytest.raises(UserError, match=re.escape(message)):
        study(tmp_path, records)


def test_a_run_of_another_study_is_refused(tmp_path):
    other = RECORDS[-1] | {"method": "nesterov"}
    with pytest.raises(UserError, match=r"line 10, has a run that is none of this study's: .*'method': 'nesterov'"):
        study(tmp_path, [*RECORDS, other])


@pytest.mark.parametrize(
    "made_with", [None, ["jax"], {"jax": "0"}, {"jax": 0, "source": "0"}, {"jax": "0", "source": "", "x": 1}]
)
def test_what_it_was_made_with_must_be_versions(tmp_path, made_with):
    with pytest.raises(UserError, match="config.json has (no 'made_with|made_with)"):
        study(tmp_path, made_with=made_with)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_runs_that_diverged_are_reported(tmp_path):
    """And measures that were not finite."""
    nothing = dict.fromkeys(LEFT["test"], None) | {"diverged": True, "seconds": 1.0}
    records = [record | (nothing if record["kind"] == "test" and record["seed"] else {}) for record in RECORDS]
    records[-4] = records[-4] | {"end": FLAT | {"R0": [None], "trace": None}}
    assert "(1 of 2 diverged)" in report(study(tmp_path, records), tmp_path)
