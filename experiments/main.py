"""Command line of the experiments: ``python -m experiments.main --help``."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import rich.console
import rich.progress
import tyro

from experiments.config import CompareConfig, UserError
from experiments.configs import CompareName, load


def _compare(settings: CompareConfig, command: str) -> None:
    from experiments import compare, picture, report  # slow imports, which --help need not wait for
    from experiments.store import open_store
    from experiments.summary import summarize

    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description:<36}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    compare.check(settings)
    with open_store(settings.workdir, settings.identity()) as store:
        with bar:
            compare.compare(settings, store, bar, command)
        summary = summarize(settings, store.records)
        written = [
            picture.draw(settings, summary, store.records),
            report.write_csv(settings, store.records),
            report.write_markdown(settings, summary, store.records),
        ]
    print(report.table(summary))
    print("wrote " + ", ".join(map(str, [*written, settings.workdir / "results.jsonl"])))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for a mistake of the user, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = _config_name(arguments)
    known = get_args(CompareName)
    default = load(named if named in known else known[0])

    def compare(
        config: CompareName, settings: Annotated[CompareConfig, tyro.conf.arg(name="")] = default
    ) -> CompareConfig:
        """Tune methods on validation data with the same budget each, test them with many seeds, and report.

        Writes to --workdir: results.jsonl (one line per run, as they finish), results.csv, report.md, comparison.png.
        Ctrl-C loses at most the run in progress; the same command goes on from there.

        Args:
          config: name of a file in experiments/configs; its values are the defaults below.
          settings: changes to it.
        """
        return settings

    try:
        settings = tyro.extras.subcommand_cli_from_dict(
            {"compare": compare},
            args=arguments,
            prog="python -m experiments.main",
            description="Experiments with gam_jax.",
        )
        _compare(settings, shlex.join(["python", "-m", "experiments.main", *arguments]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _config_name(arguments: Sequence[str]) -> Any:
    """The value of --config, read ahead because it decides the defaults that --help shows."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    return parser.parse_known_args(arguments)[0].config


if __name__ == "__main__":
    sys.exit(main())
