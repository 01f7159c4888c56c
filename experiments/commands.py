"""What the commands of the command line do: each runs, prints its result and says what it has written."""

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.common.errors import UserError
from experiments.configs.studies import how_long
from experiments.data.config import DataName
from experiments.few_shot.config import FewShotConfig
from experiments.measure.cost.config import AotConfig, AotGridConfig, BenchmarkConfig
from experiments.measure.flatness.config import MeasureConfig
from experiments.optim.methods import Method
from experiments.optim.recipes import label
from experiments.study.config import CompareConfig
from experiments.train.config import TrainConfig

# The imports inside the functions are slow ones, which --help need not wait for.


def run_compare(settings: CompareConfig, command: str) -> None:
    """Tunes and tests methods, and reports."""
    from experiments.common.progress import announce, bars

    names = ", ".join(label(method, settings.base) for method in settings.methods)
    announce(f"Comparing {names} on {settings.data.name}", how_long(settings), settings.workdir)
    with bars() as bar:
        from experiments.common.provenance import changes, provenance
        from experiments.study import compare
        from experiments.study.report.conclusion import conclusion
        from experiments.study.report.report import publish
        from experiments.study.report.study import study_of
        from experiments.study.report.tables import result_table

        compare.check(settings)
        with compare.open_study(settings) as store:
            compare.compare(settings, store, bar, command)
            study = study_of(settings, store.records, store.about["made_with"])
            written = publish(study)
    if changed := changes(study.made_with, provenance()):
        print(f"its runs were made with other versions than these: {changed}", file=sys.stderr)
    print(result_table(study))
    _print_written([*written, settings.workdir / "results.jsonl"])
    print(conclusion(study))


def run_report(studies: Sequence[Path], output: Path, command: str) -> None:
    """Reports on finished studies, each and all together."""
    from experiments.study.report import evidence, evidence_figures
    from experiments.study.report.report import publish
    from experiments.study.report.study import read_study

    found = [read_study(folder) for folder in studies]
    output.mkdir(parents=True, exist_ok=True)
    written = [path for study in found for path in publish(study)]
    pictures = evidence_figures.draw(found, output)
    _print_written([*written, *pictures, evidence.write(found, output, pictures, command)])


def run_tables(pages: Sequence[Path], check: bool) -> None:
    """Writes the tables of results into pages, or says which differ from their records."""
    from experiments.common.markdown import filled
    from experiments.common.store import write_atomically
    from experiments.configs import tables

    differing = []
    for path in pages or tables.pages():
        page = os.path.relpath(path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot read {page}: {error}") from error
        outdated = tables.outdated(text, page)
        for block, expected in outdated.items():
            old, new = next(pair for pair in itertools.zip_longest(block.content, expected) if pair[0] != pair[1])
            where = f"{page}, line {block.first}: table {block.name!r}"
            differing.append(f"{where} differs from its records, first here:\n  {old}\nexpected:\n  {new}")
            if not check:
                print(f"{where} changed")
        if outdated and not check:
            write_atomically(path, filled(text, outdated))
    if not differing:
        print("all tables are what their records say")
    elif check:
        raise UserError("\n".join([*differing, "python -m experiments.main tables writes them"]))


def run_train(settings: TrainConfig, command: str) -> None:
    """Trains one network."""
    import jax

    from experiments.common.progress import announce
    from experiments.measure.cost.chips import peak_flops
    from experiments.train.mesh import is_first, start

    start(settings.devices)
    if is_first():
        how_long = "How long it takes, the progress says when the step is compiled"
        announce(f"Training {settings.title}", how_long, settings.workdir)
    from experiments.train.run import run

    scores = run(settings, command, peak_flops(jax.devices()[0].device_kind))
    if not is_first():
        return
    print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in scores.items()))
    print(f"wrote {settings.workdir}: config.json, metrics.jsonl, curves.png, tensorboard, checkpoints")
    accuracies = {part: scores.get(f"{part}_accuracy") for part in ("train", "validation", "test")}
    found = ", ".join(f"{value:.1%} on {part} images" for part, value in accuracies.items() if value is not None)
    print(f"{settings.title}: accuracy {found}")


def run_prepare(data: DataName, folder: Path, archives: Path | None, trust_archives: bool) -> None:
    """Prepares a data set."""
    from experiments.data.prepare import prepare

    prepare(data, folder, archives, trust_archives=trust_archives)


def run_measure(kind: str, settings: MeasureConfig, command: str) -> None:
    """Measures trained networks: kind is flatness or landscape."""
    from experiments.common.progress import announce, bars

    how_long = "A small network takes minutes, and the progress says how many"
    announce(f"Measuring the {kind} of {len(settings.checkpoint)} networks", how_long, settings.output)
    with bars() as bar:
        from experiments.measure.flatness import figures, measure
        from experiments.measure.flatness.conclusions import CONCLUSIONS
        from experiments.measure.flatness.restore import restore

        runs = [restore(place) for place in settings.checkpoint]
        measure.check(settings, runs)
        results = measure.measure_all(kind, runs, settings, bar)
    print(figures.TABLES[kind](results))
    _print_written(figures.DRAW[kind](results, settings.output))
    print(CONCLUSIONS[kind](results))


def run_instances(output: Path, command: str) -> None:
    """Runs the methods on the problems on which flatness fails."""
    from experiments.common.progress import announce
    from experiments.measure.instances import figures
    from experiments.measure.instances.measure import measure

    announce("Running the methods on problems on which flatness fails", "It takes about 3 minutes", output)
    record = measure(output, command)
    print(figures.table(record))
    _print_written([output / "instances.json", figures.draw(record, output)])


def run_few_shot(settings: FewShotConfig, command: str) -> None:
    """Compares methods of few-shot class-incremental learning."""
    from experiments.common.progress import announce, bars

    what = f"Few-shot class-incremental learning on {settings.data.name}"
    announce(what, "With the defaults it takes about 10 minutes on 2 CPU cores", settings.workdir)
    with bars() as bar:
        from experiments.few_shot import report, study

        runner = study.make_runner(settings)
        with study.open_study(settings) as store:
            if runner is not None:
                study.run_study(runner, store, bar, command)
            written = report.publish(settings, store.records, store.about["made_with"])
    print(report.result_table(settings, store.records))
    _print_written([*written, settings.workdir / "results.jsonl"])
    print(report.conclusion(settings, store.records))


def run_benchmark(settings: BenchmarkConfig, command: str) -> None:
    """Measures what a training step costs."""
    from experiments.common.progress import announce, bars

    how_long = "It takes about 10 minutes for each network on 2 CPU cores"
    announce(f"Timing training steps of {', '.join(settings.networks)}", how_long, settings.workdir)
    with bars(calm=True) as bar:
        from experiments.measure.cost import benchmark_report
        from experiments.measure.cost.benchmark import benchmark, results_path

        results = benchmark(settings, command, bar, lambda line: print(line, file=sys.stderr, flush=True))
    for network in settings.networks:
        print(f"{network}: {benchmark_report.base_sentence(results, network)}")
        print(benchmark_report.table(results, network))
    written = [results_path(settings), benchmark_report.write_markdown(results, settings.workdir)]
    if settings.rounds:
        written.append(benchmark_report.draw(results, settings.workdir))
    _print_written(written)
    print("\n".join(benchmark_report.conclusion(results, network) for network in settings.networks))


def run_aot(settings: AotConfig, load_train: Callable[[str, Method], TrainConfig], command: str) -> None:
    """Compiles a training step for a TPU slice."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the TPU's compiler is all that is needed of it
    from experiments.common.progress import announce, bars
    from experiments.common.store import read_json

    what = f"Compiling the step of {settings.config} for {settings.topology}"
    announce(what, "Each way to train takes a minute or more", settings.workdir)
    with bars() as bar:
        from experiments.measure.cost.aot import compile_all
        from experiments.measure.cost.aot_report import conclusion

        report = compile_all(settings, load_train, command, bar, lambda line: print(line, flush=True))
    _print_written([report.with_suffix(".json"), report])
    print(conclusion(read_json(report.with_suffix(".json"))))


def run_aot_grid(settings: AotGridConfig, load_train: Callable[[str, Method], TrainConfig], command: str) -> None:
    """Compiles a training step for TPU slices, over a grid."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the TPU's compiler is all that is needed of it
    from experiments.common.progress import announce, bars

    what = f"Compiling steps of {settings.config} for {', '.join(settings.topologies)}"
    announce(what, "Each takes minutes, exact GAM at large batches up to 20", settings.workdir)
    with bars() as bar:
        from experiments.measure.cost.aot_grid import compile_grid

        report = compile_grid(settings, load_train, command, bar, lambda line: print(line, flush=True))
    _print_written([report.with_suffix(".jsonl"), report])


def _print_written(paths: Sequence[Path]) -> None:
    print("wrote " + ", ".join(map(str, paths)))
