"""Tuning that is shared between methods and between studies, and reports on finished studies."""

import contextlib
import csv
import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.common.store import read_records
from experiments.configs import load
from experiments.main import main
from experiments.optim.methods import METHODS
from experiments.study import compare, pool, search
from experiments.study.config import CompareConfig
from experiments.study.plan import key
from experiments.study.report import evidence
from experiments.study.report import figures as picture
from experiments.study.report.evidence import choice_table
from experiments.study.report.figures import ratios
from experiments.study.report.statistics import OUTCOMES, Estimate, Sample, summarize
from experiments.study.report.study import Study, read_study, tasks
from experiments.study.report.tables import domain_table, grid_table

ROOT = Path(__file__).parents[3]
STAGED = [
    *(
        "compare",
        "--config",
        "digits",
        "--base-first",
        "--data.train-size",
        "40",
        "--batch-size",
        "20",
        "--epochs",
        "1",
    ),
    *("--model.hidden", "8", "--trials", "2", "--tuning-seeds", "1", "--seeds", "2", "--noise", "0.3", "--measure"),
]


@pytest.fixture(autouse=True, scope="module")
def _computed_here():
    """In this process, which has its imports behind it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "open_pool", lambda workers: contextlib.nullcontext(pool._Here()))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of a method, of a recipe, and of one that has nothing of its own to tune."""
    workdir = tmp_path_factory.mktemp("studies") / "first"
    assert main([*STAGED, "--methods", "plain", "sam", "gam_skip_2", "swad", "--workdir", str(workdir)]) == 0
    return workdir


def runs(workdir, kind):
    return [record for record in read_records(workdir / "results.jsonl") if record["kind"] == kind]


def test_the_others_take_over_what_the_first_method_has_chosen(finished):
    base = {"learning_rate", "weight_decay"}
    chosen = {run["method"]: run["hyperparameters"] for run in runs(finished, "test")}
    shared = {name: chosen["plain"][name] for name in base}
    tried = {}
    for run in runs(finished, "tune"):
        tried.setdefault(run["method"], []).append(run["hyperparameters"])
        if run["method"] != "plain":
            assert {name: run["hyperparameters"][name] for name in base} == shared
    assert {method: len(settings) for method, settings in tried.items()} == {
        **{"plain": 25, "sam": 2, "gam_skip_2": 2},
        "swad": 1,
    }
    assert len({json.dumps(setting) for setting in tried["plain"]}) == 25 and tried["sam"][0] != tried["sam"][1]
    assert chosen["swad"] == chosen["plain"]
    report = (finished / "report.md").read_text()
    assert "SGD alone tuned learning rate" in report and "| as SGD " in report and "| 1 of 1 " in report


def test_the_others_wait_for_the_first_method():
    config = dataclasses.replace(load("digits"), base_first=True, trials=2, tuning_seeds=1)
    plan = compare.plan(config)
    first = [task for task in plan if task["kind"] == "tune" and task["method"] == "plain" and task["noise"] == 0.3]
    trial = next(task for task in plan if task["kind"] == "tune" and task["method"] == "sam" and task["noise"] == 0.3)
    assert compare.is_ready(config, trial, first) and not compare.is_ready(config, trial, first[1:])
    assert all(compare.is_ready(config, task, []) for task in first)
    assert [search.num_trials(config, name) for name in config.methods] == [25, 2, 2, 2]
    with pytest.raises(UserError, match="base_first needs plain first, got 'sam'"):
        compare.check(dataclasses.replace(config, methods=("sam", "plain")))
    assert "as SGD" not in grid_table(Study(dataclasses.replace(config, base_first=False), (), (), {}))


def test_a_study_takes_the_trials_of_another_one_over(finished, tmp_path):
    """Which is larger, shorter and has fewer methods."""
    workdir = tmp_path / "second"
    command = [*STAGED, "--methods", "plain", "sam", "sam_hold_2", "--data.train-size", "60", "--seeds", "3"]
    assert main([*command, "--tuned-in", str(finished), "--workdir", str(workdir)]) == 0
    theirs = [run for run in runs(finished, "tune") if run["method"] in ("plain", "sam")]
    recipes = [run | {"method": "sam_hold_2"} for run in theirs if run["method"] == "sam"]
    assert {key(run): run for run in runs(workdir, "tune")} == {key(run): run for run in [*theirs, *recipes]}
    before, after = ({run["method"]: run["hyperparameters"] for run in runs(w, "test")} for w in (finished, workdir))
    assert after == {"plain": before["plain"], "sam": before["sam"], "sam_hold_2": before["sam"]}
    assert len(runs(workdir, "test")) == 9
    report = (workdir / "report.md").read_text()
    assert f"The trials are those of the study {finished.name}." in report and "- Time: 0.00 hours of tuning" in report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model.hidden", "9"], "tuned something else:\n  config.model.hidden|model.hidden: .8. there, .9. now"),
        (["--methods", "plain", "gam"], "has not finished this run: .*'gam'"),
        (["--trials", "3"], "trials: 2 there, 3 now"),
    ],
)
def test_trials_of_another_task_are_refused(finished, tmp_path, capsys, change, message):
    command = [*STAGED, "--methods", "plain", "sam", "--tuned-in", str(finished), "--workdir", str(tmp_path / "new")]
    assert main([*command, *change]) == 2
    with pytest.raises(UserError, match=message):
        raise UserError(capsys.readouterr().err)
    assert not runs(tmp_path / "new", "test")


def test_a_report_is_made_anew_from_the_records_alone(finished, tmp_path, capsys):
    folder, output = tmp_path / finished.name, tmp_path / "out"
    shutil.copytree(finished, folder)
    for name in ("report.md", "results.csv", "comparison.png"):
        (folder / name).unlink()
    identity = json.loads((folder / "config.json").read_text())
    identity["made_with"]["source"] = "older"
    (folder / "config.json").write_text(json.dumps(identity))
    assert main(["report", "--studies", str(folder), "--output", str(output)]) == 0
    assert f"{output}/evidence.md" in capsys.readouterr().out
    assert (folder / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()
    old, new = ((place / "report.md").read_text().splitlines() for place in (finished, folder))
    assert [line for line in new if line not in old] == [
        line.replace(line.rpartition(" ")[2], "older.") for line in old if line.startswith("- Versions")
    ]
    assert (output / "gains.png").exists() and not (output / "prediction.png").exists()
    assert "| first, 30% wrong labels | 2     | SGD " in (output / "evidence.md").read_text()


SHIPPED = sorted((ROOT / "experiments" / "results" / "studies").iterdir())


def test_shipped_studies_are_those_of_today():
    """Whatever fields came later, and whatever methods and recipes."""
    assert len(SHIPPED) >= 14
    for folder in SHIPPED:
        there = CompareConfig.of(folder, json.loads((folder / "config.json").read_text())["config"])
        here = dataclasses.replace(load(folder.name), workdir=folder, tuned_in=there.tuned_in)
        assert (there, there.identity()) == (here, here.identity())


def test_shipped_trials_are_those_that_would_be_drawn_today():
    """Whatever methods came later: each has its own seed, and studies name the methods that they compare."""
    assert len({row.trial_seed for row in METHODS.values()}) == len(METHODS)
    checked = set()
    for folder in SHIPPED:
        config = load(folder.name)
        tuned = [run for run in read_records(folder / "results.jsonl") if run["kind"] == "tune"]
        own = [name for name in config.methods if config.tuned_in is None and not search.from_base(config, name)]
        drawn = {name: search.trials(config, name) for name in own}
        for run in tuned:
            if run["method"] in drawn:
                assert drawn[run["method"]][run["trial"]].tuned() == run["hyperparameters"]
        checked |= drawn.keys()
    assert len(checked) > 20


def reported_again(folder, tmp_path, monkeypatch):
    """The report of a shipped study, by its own command on a copy of its records, and what was said."""
    monkeypatch.setattr(compare, "open_pool", lambda *_: pytest.fail("trained again"))
    for name in ("config.json", "results.jsonl"):
        shutil.copy(folder / name, tmp_path)
    session = next(record for record in read_records(folder / "results.jsonl") if record["kind"] == "session")
    arguments = shlex.split(session["command"])[3:]
    arguments[arguments.index("--workdir") + 1] = str(tmp_path)
    assert main(arguments) == 0


@pytest.mark.parametrize(
    "folder",
    [pytest.param(f, id=f.name, marks=() if f.name == "pacs" else pytest.mark.slow) for f in SHIPPED],
)
def test_a_shipped_study_reports_again_from_its_own_command(folder, tmp_path, monkeypatch, capsys):
    """Byte for byte, with no run and without its data, though other code made it; and says so."""
    reported_again(folder, tmp_path, monkeypatch)
    assert "its runs were made with other versions than these: " in capsys.readouterr().err
    texts = ["config.json", "report.md", "results.csv", "results.jsonl"]
    assert {name: (tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in texts} == dict.fromkeys(
        texts, True
    )
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()}


def test_an_unfinished_study_of_other_code_does_not_go_on(finished, tmp_path, capsys):
    """Runs of different code are not compared with each other."""
    identity = json.loads((finished / "config.json").read_text())
    identity["made_with"]["source"] = "older"
    (tmp_path / "config.json").write_text(json.dumps(identity))
    before = b"".join((finished / "results.jsonl").read_bytes().splitlines(keepends=True)[:-1])
    (tmp_path / "results.jsonl").write_bytes(before)
    command = [*STAGED, "--methods", "plain", "sam", "gam_skip_2", "swad", "--workdir", str(tmp_path)]
    assert main(command) == 2
    assert "made_with.source: older there, " in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_an_unfinished_study_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match="config.json is not readable"):
        read_study(tmp_path)
    folder = tmp_path / "first"
    shutil.copytree(finished, folder)
    records = (folder / "results.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "results.jsonl").write_bytes(b"".join(records[:-1]))
    with pytest.raises(UserError, match="is not finished: 1 runs are missing"):
        read_study(folder)


def synthetic(**gains):
    """A study of four seeds in which methods gain so many points, and flatter networks have the smaller error."""
    measured = {"measure": ("eigenvalues", "trace", "flatness"), "rho": (0.1,), "k": 1}
    config = dataclasses.replace(
        load("digits"), methods=("plain", *gains), noise=(0.0,), seeds=4, trials=1, tuning_seeds=1, **measured
    )
    records = []
    for method, gain in {"plain": 0.0, **gains}.items():
        records.append({"kind": "cost", "method": method, "flops_per_step": 1.0 if method == "plain" else 3.0})
        for seed in range(4):
            error = 0.2 - gain / 100 + seed * (1 + gain / 10) / 1000
            flat = {"eigenvalues": [error], "trace": error**2, "R0": [1 - error], "R1": [2 * error]}
            about = {"kind": "test", "noise": 0.0, "method": method, "seed": seed, "seconds": 1.0, "diverged": False}
            scores = {
                "test_accuracy": 1 - error,
                "train_loss": 0.1,
                "train_accuracy": 1.0,
                "generalization_gap": error,
                "half": flat,
                "end": flat,
            }
            records.append(about | scores)
    return Study(config, records, summarize(config, records), {"jax": "0", "source": "0"})


def cells(table, name):
    """The cells of the rows that start with a name."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [row for row in rows if row[0] == name]


def test_claims_are_counted_over_tasks():
    assert [Estimate(mean, 1.0, 5).is_clear for mean in (2.7, 2.8, -2.8)] == [False, True, True]  # t_4 is 2.776
    assert [Estimate(2.1, 1.0, seeds).is_clear for seeds in (1, 5, 20)] == [False, False, True]  # t_19 is 2.093
    studies = [synthetic(sam=2.0, gam=4.0), synthetic(sam=3.0, gam=-1.0), synthetic(gam=0.0)]
    table = evidence.claim_table(tasks([*studies, studies[0]]))  # runs that two studies share count once
    assert cells(table, "GAM - base")[0][1:5] == ["3", "1", "1", "1"]
    assert cells(table, "GAM - SAM")[0][1:5] == ["2", "1", "1", "1"]
    assert cells(table, "SAM - base")[0][1:5] == ["2", "2", "2", "0"]
    assert not cells(table, "SAM + GAM - SAM")
    mean = np.mean([gain - 1.5 * gain / 100 for gain in (4.0, -1.0, 0.0)])  # over the four seeds, in points
    assert float(cells(table, "GAM - base")[0][5].split()[0]) == pytest.approx(mean, abs=0.006)
    first = evidence.gain_table(tasks(studies), evidence.PAPER).splitlines()[2]
    assert "| SGD 79.85 ± 0.06 | 100.0 " in first
    assert "**+3.94 ± 0.03**" in first and first.count("±") == 3


def test_flatness_is_compared_with_the_base_optimizer():
    table = evidence.flatness_table(tasks([synthetic(gam=4.0), synthetic(gam=-4.0)]))
    (row,) = cells(table, "GAM")
    base, better, worse = (np.mean([0.2 - g / 100 + s * (1 + g / 10) / 1000 for s in range(4)]) for g in (0, 4, -4))
    for cell, expected in ((row[1], "1 of 2"), (row[2], "1 of 2"), (row[3], "1 of 2")):
        assert cell.endswith(f"({expected})")
    assert row[3].startswith(f"{np.sqrt(better * worse) / base:.2f} ")
    assert cells(table, "SAM") == [["SAM", "", "", "", ""]]


def test_choices_are_compared_by_validation_accuracy():
    study = synthetic(gam=4.0)
    trials = [(0.1, 0.5, 0.90), (0.1, 1.0, 0.80), (0.2, 0.5, 0.86), (0.5, 1.0, None)]
    for trial, (rho, alpha, accuracy) in enumerate(trials):
        about = {"kind": "tune", "noise": 0.0, "method": "gam", "trial": trial, "seed": 1000}
        chosen = {"gam_rho": rho, "gam_alpha": alpha}
        study.records.append(about | {"hyperparameters": chosen, "validation_accuracy": accuracy})
        study.records.append(about | {"seed": 1001, "hyperparameters": chosen, "validation_accuracy": accuracy})
    (row,) = cells(choice_table(tasks([study, synthetic(sam=1.0)]), "gam", "gam_rho"), "digits")
    assert row[1:] == ["**0.0** (2)", "-4.0 (1)", "-90.0 (1)", "0.2"]
    (row,) = cells(choice_table(tasks([study]), "gam", "gam_alpha"), "digits")
    assert row[1:] == ["**0.0** (2)", "-10.0 (2)", "0.2"]
    (row,) = cells(choice_table(tasks([study]), "gam", "gam_rho", "gam_alpha"), "digits")
    assert row[1:] == ["**0.0** (1)", "-4.0 (2)", "-90.0 (1)", "0.2"]
    adopted = study._replace(config=dataclasses.replace(study.config, tuned_in=study.config.workdir))
    assert not cells(choice_table(tasks([adopted]), "gam", "gam_rho"), "digits")


def test_prediction_tells_methods_apart_from_seeds():
    """Of networks whose flatness is their error R1 ranks all, R0 all the other way round."""
    table = evidence.prediction_table([synthetic(sam=1.0, gam=2.0), synthetic(gam=3.0)])
    assert len(table.splitlines()) == 2 + 2 * len(OUTCOMES) * len(evidence.PREDICTORS)
    for row in cells(table, "test error"):
        sign = "-" if row[2].startswith("R0") else "+"
        assert row[3] == f"{sign}1.00 ({sign}1.00 to {sign}1.00)"
        assert row[4] == ("" if row[2].startswith("R1") else "+2.00 (+2.00 to +2.00)" if sign == "-" else row[4])


def test_within_a_method_what_differs_between_methods_does_not_count():
    shift, seeds = np.array([[0.0], [10.0]]), np.arange(5.0)
    sample = Sample((seeds + shift)[None], seeds - shift)
    assert sample.correlations(np.arange(5), within=True) == pytest.approx([1.0])
    assert sample.correlations(np.arange(5), within=False)[0] < 0
    assert sample.correlations(np.tile(np.arange(5), (3, 1)), within=True).shape == (1, 3)


def test_domains_are_told_apart_by_their_seeds():
    config = dataclasses.replace(load("pacs"), methods=("plain",), seeds=8)
    accuracy = [0.1, 0.2, 0.3, 0.4, 0.3, 0.4, 0.5, 0.6]
    records = [
        {"kind": "test", "noise": 0.0, "method": "plain", "seed": seed, "test_accuracy": accuracy[seed]}
        for seed in range(8)
    ]
    (row,) = cells(domain_table(Study(config, records, (), {})), "0%")
    assert row[2:] == [f"{mean}.00 ± 10.00" for mean in (20, 30, 40, 50)]


def test_shares_of_gams_steps_are_in_their_order():
    config = dataclasses.replace(load("digits"), methods=("gam", "gam_hold_5", "gam_skip_2", "plain", "gam_skip_20"))
    assert [*ratios(config).items()] == [("plain", 0.0), ("gam_skip_20", 0.05), ("gam_skip_2", 0.5), ("gam", 1.0)]


def test_every_measure_is_seen_in_the_picture_at_half_time_and_at_the_end(monkeypatch):
    monkeypatch.setattr(picture, "save", lambda figure, path: figure)
    figure = picture.draw_flatness(synthetic(gam=4.0))
    figure.canvas.draw()
    assert [axis.get_title() for axis in figure.axes] == ["R0 at 0.1", "R1 at 0.1", "top eigenvalue", "trace"]
    for axis in figure.axes:
        points = np.concatenate([drawn[0].get_xydata() for drawn in axis.containers])
        assert len(points) == 2 * 2
        assert axis.viewLim.contains(*points.min(0)) and axis.viewLim.contains(*points.max(0))
    plt.close(figure)


def test_the_title_of_a_narrow_picture_is_not_cut_off(monkeypatch):
    monkeypatch.setattr(picture, "save", lambda figure, path: figure)
    study = synthetic(gam=4.0, sam=1.0)
    figure = picture.draw(study)
    figure.canvas.draw()
    title = figure._suptitle.get_window_extent()
    assert title.x0 >= 0 and title.x1 <= figure.bbox.width
    plt.close(figure)


def test_the_csv_of_a_study_has_every_final_run(finished):
    with (finished / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 2
