"""``zoo bench``: how fast an engine is, beside others."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import click

from zoo.bench import Report, Settings, bench, peer_names
from zoo.bench.report import text, write_figure, write_json
from zoo.cli_options import device_options, hub_options, read_structures
from zoo.errors import ConfigError, MissingPackageError

_WIDTH = 100  # columns
_PRINT = Path("-")


def _counts(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}; expected whole numbers with commas between, such as 8,64") from None


@click.command("bench")
@click.argument("name")
@click.option(
    "--against",
    multiple=True,
    metavar="NAME",
    help=f"Another engine; a peer ({', '.join(peer_names())}); peers, for all of these; or none, for no teacher. "
    "Repeatable.",
)
@click.option(
    "--structure",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Structure to repeat, the last in FILE.  [default: the smallest of the engine's own]",
)
@click.option(
    "--atoms",
    default="8,64,216,1000",
    show_default=True,
    callback=_counts,
    metavar="NUMBERS",
    help="About so many, of repeats of a periodic structure.",
)
@click.option(
    "--batch",
    "batches",
    default="1,8,64",
    show_default=True,
    callback=_counts,
    metavar="NUMBERS",
    help="So many of the smallest structure in one call.",
)
@click.option("--threads", type=int, help="Of PyTorch.  [default: as many as it takes]")
@click.option("--repeats", default=Settings.repeats, show_default=True, help="Timed calls of each, more of fast ones.")
@click.option(
    "--patience",
    "patience_s",
    default=Settings.patience_s,
    show_default=True,
    help="Seconds; what takes longer for one call is left out.",
)
@device_options
@hub_options
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write all numbers to as JSON; - prints them in place of the table.",
)
@click.option(
    "--figure",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="PNG to draw the time an atom against atoms to.",
)
def bench_command(
    name: str,
    against: tuple[str, ...],
    structure: Path | None,
    json_file: Path | None,
    figure: Path | None,
    dtype: str,
    device: str,
    hub: str | None,
    namespace: str,
    **options: Any,
) -> None:
    """Time energy and forces of engine NAME beside its teacher.

    NAME is FAMILY/ENGINE or a model folder (./folder). Compiled code, PyTorch and what they are compared with take
    turns on the same structures, so that ratios hold where times do not. What is not installed is told, and left out.
    Exits with 1 where the engine itself could not be timed.

    \b
    zoo bench sevennet-0/silicon-student --against peers --figure speed.png
    """
    settings = Settings(**options)
    _check(None if json_file == _PRINT else json_file, ".json")
    _check(figure, ".png")
    if figure is not None and importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError("figures need matplotlib; run: pip install matplotlib")
    atoms = None if structure is None else read_structures(structure, "-1:")[0]
    report = bench(
        name,
        against=against,
        structure=atoms,
        settings=settings,
        dtype=dtype,
        device=device,
        hub=hub,
        namespace=namespace,
    )
    _give(report, json_file, figure)
    if not report.timed:
        sys.exit(1)


def _check(path: Path | None, suffix: str) -> None:
    """Before anything is measured. Raises ConfigError for a file that cannot be written."""
    if path is None:
        return
    if path.suffix != suffix or path.is_dir():
        raise ConfigError(f"{path} is to be a file that ends with {suffix}; name it {path.with_suffix(suffix).name}")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}; make it, or choose another place")


def _give(report: Report, json_file: Path | None, figure: Path | None) -> None:
    if json_file == _PRINT:
        click.echo(json.dumps(report.as_dict(), indent=1, ensure_ascii=False))
    else:
        click.echo(text(report, _WIDTH))
    if json_file is not None and json_file != _PRINT:
        write_json(report, json_file)
    if figure is not None:
        write_figure(report, figure)
