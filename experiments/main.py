"""Command line of the experiments: ``python -m experiments.main --help``."""

import argparse
import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import rich.console
import rich.progress
import tyro

from experiments.config import CompareConfig, FlatnessConfig, LandscapeConfig, MeasureConfig, TrainConfig, UserError
from experiments.configs import CompareName, TrainName, load, load_train
from experiments.optim import METHODS, Method

Job = Callable[[str], None]
"""What a command line asks for; takes the command itself, for the record."""


def _compare(settings: CompareConfig, command: str) -> None:
    from experiments import compare, picture, report  # slow imports, which --help need not wait for
    from experiments.store import open_store
    from experiments.summary import summarize

    compare.check(settings)
    with open_store(settings.workdir, settings.identity()) as store:
        with _progress() as bar:
            compare.compare(settings, store, bar, command)
        summary = summarize(settings, store.records)
        written = [
            picture.draw(settings, summary, store.records),
            report.write_csv(settings, store.records),
            report.write_markdown(settings, summary, store.records),
        ]
    print(report.table(summary))
    _print_written([*written, settings.workdir / "results.jsonl"])


def _train(settings: TrainConfig, command: str) -> None:
    from experiments.checkpoint import open_checkpoints
    from experiments.data import digits
    from experiments.loop import train
    from experiments.store import open_store

    digits(settings.data, settings.noise, settings.seed)  # refuses sizes that do not fit before a folder is made
    with open_store(settings.workdir, settings.identity(), "metrics.jsonl", ("step",)) as store:
        with open_checkpoints(settings.workdir) as checkpoints, _progress() as bar:
            scores = train(settings, store, checkpoints, bar)
    print(
        ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in scores.items()
        )
    )
    print(f"wrote {settings.workdir}: config.json, metrics.jsonl, checkpoints")


def _measure(kind: str, settings: MeasureConfig, command: str) -> None:
    from experiments import checkpoint, figures, measure

    runs = [checkpoint.restore(place) for place in settings.checkpoint]
    measure.check(settings, runs)
    with _progress() as bar:
        results = measure.measure_all(kind, runs, settings, bar)
    print(figures.TABLES[kind](results))
    _print_written(figures.DRAW[kind](results, settings.output))


def _print_written(paths: Sequence[Path]) -> None:
    print("wrote " + ", ".join(map(str, paths)))


def _progress() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description:<36}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for a mistake of the user, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    named, method = _read_ahead(arguments)
    comparison, run = load(_known(named, CompareName)), load_train(_known(named, TrainName), method)

    def compare(
        config: CompareName,
        settings: Annotated[CompareConfig, tyro.conf.arg(name="")] = comparison,
    ) -> Job:
        """Tune methods on validation data with the same budget each, test them with many seeds, and report.

        Writes to --workdir: results.jsonl (one line per run, as they finish), results.csv, report.md, comparison.png.
        Ctrl-C loses at most the run in progress; the same command goes on from there.

        Args:
          config: name of a file in experiments/configs; its values are the defaults below.
          settings: changes to it.
        """
        return functools.partial(_compare, settings)

    def train(
        config: TrainName,
        settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = run,
    ) -> Job:
        """Train one network with one method, and save it at half-time and at the end.

        Writes to --workdir: config.json (the exact config and versions), metrics.jsonl (one line per epoch),
        checkpoints/STEP. The hyper-parameters below are those of --method in the config.

        Args:
          config: name of a file in experiments/configs; its values are the defaults below.
          settings: changes to it.
        """
        return functools.partial(_train, settings)

    def flatness(settings: Annotated[FlatnessConfig, tyro.conf.arg(name="")]) -> Job:
        """Measure how flat trained networks are, and draw them together.

        The loss is the mean over the whole training set, with the labels that were trained on and without weight
        decay. Writes to --output: RUN-STEP-flatness.json for each checkpoint, after every single measurement, and
        flatness.png (R0 and R1 over rho), top_eigenvalues.png, spectral_density.png, local_minima.png.

        Args:
          settings: what to measure.
        """
        return functools.partial(_measure, "flatness", settings)

    def landscape(settings: Annotated[LandscapeConfig, tyro.conf.arg(name="")]) -> Job:
        """Draw the training loss around trained networks, along filter-normalised random directions.

        Every network gets the same random directions, scaled filter by filter to its own weights (Li et al. 2018), and
        all share one scale of colours. Writes to --output: RUN-STEP-landscape.json for each checkpoint, lines.png and
        planes.png.

        Args:
          settings: what to draw.
        """
        return functools.partial(_measure, "landscape", settings)

    commands: dict[str, Callable[..., Job]] = {
        "compare": compare,
        "train": train,
        "flatness": flatness,
        "landscape": landscape,
    }
    try:
        job = tyro.extras.subcommand_cli_from_dict(
            commands,
            args=arguments,
            prog="python -m experiments.main",
            description="Experiments with gam_jax.",
        )
        job(shlex.join(["python", "-m", "experiments.main", *arguments]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _read_ahead(arguments: Sequence[str]) -> tuple[str | None, Method]:
    """The values of --config and --method, read ahead because they decide the defaults that --help shows."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    parser.add_argument("--method", nargs="?")
    found = parser.parse_known_args(arguments)[0]
    return found.config, cast(Method, found.method) if found.method in METHODS else "gam"


def _known(name: str | None, names: Any) -> str:
    """The name, or the first one that is known, whose defaults then stand in the help."""
    known: tuple[str, ...] = get_args(names)
    return known[0] if name is None or name not in known else name


if __name__ == "__main__":
    sys.exit(main())
