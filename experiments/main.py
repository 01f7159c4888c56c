"""Command line of the experiments: ``python -m experiments.main --help``."""

import argparse
import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments import commands
from experiments.common.errors import Stopped, UserError, nearest
from experiments.common.pipes import until_closed
from experiments.configs import TRAIN_NAMES, CompareName, load, load_train
from experiments.configs.benchmarks import BENCHMARKS, BenchmarkName
from experiments.configs.studies import STUDIES
from experiments.data.config import DataName
from experiments.few_shot.config import FewShotConfig
from experiments.measure.cost.config import AotConfig, AotGridConfig, BenchmarkConfig
from experiments.measure.flatness.config import FlatnessConfig, LandscapeConfig
from experiments.optim.methods import METHODS, Method
from experiments.study.config import CompareConfig
from experiments.train.config import TrainConfig

_NAMES_HELP = f"name of a config in experiments/configs; its values are the defaults below: {', '.join(TRAIN_NAMES)}"
Job = Callable[[str], None]
"""What a command line asks for; takes the command itself, for the record."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit status: 0; 2 for what the user can put right; 75 after SIGTERM, with everything saved; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    named, method = _read_ahead(arguments)
    comparison, run = load(_known(named, tuple(STUDIES))), load_train(_known(named, TRAIN_NAMES), method)
    measured = BENCHMARKS[_known(named, tuple(BENCHMARKS))]
    compilation = AotConfig(config=_known(named, TRAIN_NAMES), model=run.model, batch_size=run.batch_size)

    def compare(
        config: CompareName,
        settings: Annotated[CompareConfig, tyro.conf.arg(name="")] = comparison,
    ) -> Job:
        """Tune methods on validation data with the same budget each, test them with many seeds, and report.

        Writes to --workdir: results.jsonl (one line per run, as they finish), results.csv, report.md, comparison.png;
        noise.png for three noise levels or more, frontier.png where cheap recipes take part, flatness.png where
        --measure has flatness. The runs are shared out among --workers processes. Ctrl-C loses at most the runs in
        progress; the same command goes on from there.

        Args:
          config: name of a study; its values are the defaults below.
          settings: changes to it.
        """
        return functools.partial(commands.run_compare, settings)

    def report(studies: tuple[Path, ...], output: Path) -> Job:
        """Report on finished studies: write the report and the pictures of each anew, and what they say together.

        Everything is made from the records of the studies, whatever code they were made with. Writes to --output:
        evidence.md, gains.png, prediction.png.

        Args:
          studies: their folders.
          output: folder of the common report.
        """
        return functools.partial(commands.run_report, studies, output)

    def tables(pages: tuple[Path, ...] = (), check: bool = False) -> Job:
        """Write the tables of results in Markdown files anew, from the records in experiments/results.

        Each stands between the lines <!-- table: NAME --> and <!-- end of table -->; the names are in
        experiments/configs/tables.py. Prints which have changed.

        Args:
          pages: the files; if none are given, README.md, experiments/README.md and those in docs.
          check: write nothing; a table that differs from its records is an error (status 2).
        """
        return lambda command: commands.run_tables(pages, check)

    def train(
        config: Annotated[str, tyro.conf.arg(metavar="NAME", help=_NAMES_HELP)],
        settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = run,
    ) -> Job:
        """Train one network with one method; on any number of devices and hosts.

        Writes to --workdir: config.json (the exact config), metrics.jsonl (loss and accuracy, what the optimizer saw,
        versions), curves.png, tensorboard, checkpoints/STEP. Whatever stops it, the same command goes on from the last
        checkpoint. SIGTERM saves and exits with status 75. The hyper-parameters below are those of --method in the
        config.

        Args:
          config: name of a config; its values are the defaults below.
          settings: changes to it.
        """
        load_train(config, method)  # refuses an unknown name
        return functools.partial(commands.run_train, settings)

    def prepare(
        data: DataName,
        folder: Path,
        archives: Path | None = None,
        trust_archives: bool = False,
    ) -> Job:
        """Download a data set, or read its archives, and write it as training reads it. Needs TensorFlow, which
        training does not: pip install '.[prepare]'.

        Args:
          data: the data set.
          folder: of all data sets; training finds it with --data.folder, or in the environment variable TFDS_DATA_DIR.
          archives: folder with the archives as they are published, to be read in place of downloading them. ImageNet
            needs it: it cannot be downloaded freely.
          trust_archives: also read archives whose checksum is not the one that tfds has recorded.
        """
        return lambda command: commands.run_prepare(data, folder, archives, trust_archives)

    def flatness(settings: Annotated[FlatnessConfig, tyro.conf.arg(name="")]) -> Job:
        """Measure how flat trained networks are, and draw them together.

        The loss is the mean over the whole training set, with the labels that were trained on and without weight
        decay. Writes to --output: RUN-STEP-flatness.json for each checkpoint, after every single measurement, and
        flatness.png (R0 and R1 over rho), top_eigenvalues.png, spectral_density.png, local_minima.png.

        Args:
          settings: what to measure.
        """
        return functools.partial(commands.run_measure, "flatness", settings)

    def landscape(settings: Annotated[LandscapeConfig, tyro.conf.arg(name="")]) -> Job:
        """Draw the training loss around trained networks, along filter-normalised random directions.

        Every network gets the same random directions, scaled filter by filter to its own weights (Li et al. 2018), and
        all share one scale of colours. Writes to --output: RUN-STEP-landscape.json for each checkpoint, lines.png and
        planes.png.

        Args:
          settings: what to draw.
        """
        return functools.partial(commands.run_measure, "landscape", settings)

    def instances(output: Path) -> Job:
        """Run the methods on convex problems on which flat minima do not generalize (docs/where_flatness_fails.md).

        Writes to --output: instances.json, instances.png.

        Args:
          output: the folder.
        """
        return functools.partial(commands.run_instances, output)

    def few_shot(settings: Annotated[FewShotConfig, tyro.conf.arg(name="")]) -> Job:
        """Learn base classes, then new ones from a few images each: F2M, fine-tuning, a frozen base, joint training.

        Each method is tuned on validation data with the same budget, then tested with many seeds. Writes to --workdir:
        results.jsonl (one line per run, as they finish), report.md, few_shot.png. Ctrl-C loses at most the run in
        progress; the same command goes on from there.

        Args:
          settings: what to compare.
        """
        return functools.partial(commands.run_few_shot, settings)

    def benchmark(
        config: BenchmarkName = "cpu",
        settings: Annotated[BenchmarkConfig, tyro.conf.arg(name="")] = measured,
    ) -> Job:
        """Measure what a training step costs with every method, relative to SGD's: time, FLOPs, memory, compilation.

        All cases are timed in turns, so that what disturbs one disturbs all. Writes to --workdir: benchmark.json (as
        results come), benchmark.md, benchmark.png.

        Args:
          config: name of a benchmark; its values are the defaults below.
          settings: changes to it.
        """
        return functools.partial(commands.run_benchmark, settings)

    def aot(
        settings: Annotated[AotConfig, tyro.conf.arg(name="")] = compilation,
    ) -> Job:
        """Compile the training step of a config for a TPU slice, without any TPU: what it needs on each chip.

        Needs the TPU's compiler: pip install '.[tpu]'. Writes to --workdir: CONFIG-TOPOLOGY.json, CONFIG-TOPOLOGY.md.
        What does not fit into the chip's memory is an error (status 2), with the numbers.

        Args:
          settings: what to compile.
        """
        load_train(settings.config, method)  # refuses an unknown name
        return functools.partial(commands.run_aot, settings, load_train)

    def aot_grid(settings: Annotated[AotGridConfig, tyro.conf.arg(name="")]) -> Job:
        """Compile the training step for TPU slices as aot does, over networks, slices, batches and methods.

        Predicts time and utilisation of each from FLOPs, memory traffic and bytes sent. Needs the TPU's compiler:
        pip install '.[tpu]'. Writes to --workdir: aot.jsonl (one line per cell, as they are compiled), aot.md.
        Ctrl-C loses at most the cell in progress; the same command, or one with more cells, goes on from there.

        Args:
          settings: what to compile.
        """
        load_train(settings.config, method)  # refuses an unknown name
        return functools.partial(commands.run_aot_grid, settings, load_train)

    subcommands: dict[str, Callable[..., Job]] = {
        "compare": compare,
        "report": report,
        "tables": tables,
        "train": train,
        "prepare": prepare,
        "flatness": flatness,
        "landscape": landscape,
        "instances": instances,
        "few-shot": few_shot,
        "benchmark": benchmark,
        "aot": aot,
        "aot-grid": aot_grid,
    }
    try:
        command = next((word for word in arguments if not word.startswith("-")), None)
        if command is not None and arguments[0] == command and command not in subcommands:
            raise UserError(f"there is no command {command!r}{nearest(command, subcommands)}")
        job = tyro.extras.subcommand_cli_from_dict(
            subcommands,
            args=arguments,
            prog="python -m experiments.main",
            description="Experiments with gam_jax.",
        )
        job(shlex.join(["python", "-m", "experiments.main", *arguments]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 75  # EX_TEMPFAIL: try again
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
    return found.config, found.method if found.method in METHODS else "gam"


def _known(name: str | None, known: tuple[str, ...]) -> str:
    """The name, or the first one that is known, whose defaults then stand in the help."""
    return known[0] if name is None or name not in known else name


if __name__ == "__main__":
    sys.exit(until_closed(main))
