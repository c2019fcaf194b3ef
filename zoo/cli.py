"""The command ``zoo``: a thin layer over what Python can do as well.

Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

import errno
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from zoo.browse import build_gallery, info_text, list_text
from zoo.cli_bench import bench_command
from zoo.cli_convert import convert_command
from zoo.cli_data import data
from zoo.cli_options import hub_options, json_option
from zoo.cli_recipe import recipe_group, reproduce_command
from zoo.cli_run import check_command, md_command, relax_command, warm_command
from zoo.cli_teachers import teachers
from zoo.distill.workers import first_to_fail, launched_workers
from zoo.errors import UnknownNameError, ZooError, ZooWarning
from zoo.estimate import estimate
from zoo.estimate import text as estimate_text
from zoo.evaluate.report import table
from zoo.listing import describe, listing
from zoo.markdown import printable
from zoo.naming import DEFAULT_NAMESPACE
from zoo.pipeline import distill, evaluate, make_labels, train_student, train_twin
from zoo.publish import publish, seal
from zoo.pull import pull
from zoo.recipe import read_recipe
from zoo.run import Run
from zoo.terminal import card_text
from zoo.version import __version__

F = TypeVar("F", bound=Callable[..., Any])


_WIDTH = 100  # columns of a list and of a help text
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LAST_WORD = 2.0  # seconds for the process that says what went wrong, before the end of another ends it


class Commands(click.Group):
    """Turns errors of zoo and of the system into one line and the exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with _notes():
                return super().invoke(context)
        except BrokenPipeError:  # the reader of a pipe left, which click ends quietly
            raise
        except (ZooError, OSError) as error:
            text = str(error) if isinstance(error, ZooError) else _system_error(error)
            click.echo(f"zoo: {text}", err=True)
            sys.exit(1)


@contextmanager
def _notes() -> Iterator[None]:
    """Warnings of zoo as one line each."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, ZooWarning):
                click.echo(f"zoo: note: {message}", err=True)
            else:
                usual(message, category, *where, **options)

        warnings.showwarning = show
        warnings.simplefilter("always", ZooWarning)
        yield


def _system_error(error: OSError) -> str:
    remedy = "make room there, then run the same again" if error.errno in _FULL else "choose another folder"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; {remedy}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH})
@click.version_option(__version__, prog_name="zoo")
def main() -> None:
    """Fast, specialised force-field engines, distilled from foundation models of atoms.

    \b
    Find one:    zoo list, zoo info NAME, zoo card NAME, zoo gallery FOLDER
    Use one:     zoo relax NAME FILE, zoo md NAME FILE, zoo check NAME
    Ahead:       zoo pull NAME, zoo warm NAME
    How fast:    zoo bench NAME
    Make one:    zoo distill RECIPE   (label, train, evaluate are its parts)
    Recipes:     zoo recipe new NAME --data FILE, zoo recipe check RECIPE
    Data sets:   zoo data list, zoo data show NAME, zoo data fetch NAME
    Teachers:    zoo teachers, zoo teachers install FAMILY, zoo convert jmp-l
    Share one:   zoo publish FOLDER, zoo reproduce NAME --check

    An engine is named FAMILY/ENGINE, for instance sevennet-0/silicon-student, or given as a model folder (./folder).
    """


_RUNNING = (check_command, md_command, relax_command, warm_command)
for _part in (bench_command, convert_command, data, recipe_group, reproduce_command, teachers, *_RUNNING):
    main.add_command(_part)


def recipe_options(command: F) -> F:
    """The argument and options that all stages of a recipe share."""
    for decorate in (
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        click.option("--replace", is_flag=True, help="Delete what was made from another recipe, and make it anew."),
        click.option(
            "--run",
            "folder",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder of the run.  [default: runs/FAMILY/ENGINE]",
        ),
        click.argument("recipe"),
    ):
        command = decorate(command)
    return command


@contextmanager
def _run(recipe: str, folder: Path | None, replace: bool, dry_run: bool) -> Iterator[Run | None]:
    """The run, of all processes that were launched together; None where it was only to be outlined.

    Of several, the main one says what there is to say, and the first that fails says why.
    """
    try:
        with launched_workers() as workers:
            if not workers.main:
                warnings.simplefilter("ignore", ZooWarning)
            run = Run.of(read_recipe(recipe), folder, replace=replace, workers=workers)
            if dry_run and workers.main:
                click.echo(estimate_text(estimate(run)))
            yield None if dry_run else run
    except Exception:
        if not first_to_fail():
            time.sleep(_LAST_WORD)
            sys.exit(1)
        raise


def _say(run: Run, text: str) -> None:
    if run.workers.main:
        click.echo(text)


@main.command("distill")
@recipe_options
def distill_command(recipe: str, folder: Path | None, replace: bool, dry_run: bool) -> None:
    """Carry out RECIPE, from structures to a model folder.

    RECIPE is a name (sevennet-0/silicon-student) or the path of a .yaml file. What is done already is reused, and a
    run that was interrupted goes on where it stopped: run the same command again.
    """
    with _run(recipe, folder, replace, dry_run) as run:
        if run is not None:
            model = distill(run)
            _say(run, table(evaluate(run)))
            _say(run, f"{model} is ready. Publish it with: zoo publish {model} --hub ./hub")


@main.command("label")
@recipe_options
def label_command(recipe: str, folder: Path | None, replace: bool, dry_run: bool) -> None:
    """Make the structures of RECIPE and let its teacher label them.

    A label is the teacher's energy, forces and stress, and products of its Hessian. RECIPE is a name
    (sevennet-0/silicon-student) or the path of a .yaml file.
    """
    with _run(recipe, folder, replace, dry_run) as run:
        if run is not None:
            _say(run, f"labels are in {make_labels(run)}")


@main.command("train")
@recipe_options
def train_command(recipe: str, folder: Path | None, replace: bool, dry_run: bool) -> None:
    """Train the student of RECIPE and its undistilled twin.

    The twin is the same student, trained without Hessians, to show what they bring; a recipe that learns from a data
    set alone has none. Labels are made first where they are missing. Progress can be watched in train/metrics.jsonl in
    the folder of the run, one record a line.
    """
    with _run(recipe, folder, replace, dry_run) as run:
        if run is not None:
            train_student(run)
            twin = "" if train_twin(run) is None else f" and {run.folder / 'twin'}"
            _say(run, f"weights are in {run.folder / 'train'}{twin}")


@main.command("evaluate")
@recipe_options
def evaluate_command(recipe: str, folder: Path | None, replace: bool, dry_run: bool) -> None:
    """Compare student, teacher and undistilled twin of RECIPE.

    Prints a table: errors on the test structures, phonons, energy drift and speed, of the twin only where the recipe
    has one. All of it and figures are in evaluation in the folder of the run. Labelling and training are done first
    where they are missing.
    """
    with _run(recipe, folder, replace, dry_run) as run:
        if run is not None:
            _say(run, table(evaluate(run)))


@main.command("publish")
@click.argument("folder", type=click.Path(path_type=Path))
@hub_options
@click.option("--dry-run", is_flag=True, help="Check everything and show what would be sent; needs no token.")
@click.option("--public", is_flag=True, help="Let everybody read it; without it a new repository is private.")
@click.option("--unstated-terms", is_flag=True, help="Publish openly what learned from data that state no licence.")
def publish_command(
    folder: Path, hub: str | None, namespace: str, dry_run: bool, public: bool, unstated_terms: bool
) -> None:
    """Publish the model folder FOLDER to a hub.

    It becomes the next version of its engine. The folder is verified, its probe recomputed, its card and its licence
    checked before anything is sent, and what arrived is loaded and recomputed before it is released. The same content
    published again changes nothing; what was interrupted goes on when it is published again.

    \b
    zoo publish runs/sevennet-0/silicon-student/model --hub ./hub
    """
    options = {"dry_run": dry_run, "public": public, "unstated_terms": unstated_terms}
    click.echo(publish(folder, hub=hub, namespace=namespace, **options))


@main.command("seal")
@click.argument("folder", type=click.Path(path_type=Path))
def seal_command(folder: Path) -> None:
    """Take what was changed by hand in model folder FOLDER for good.

    Writes its manifest anew, for instance after a sentence of the card was corrected. What the card states of the
    engine, and its form, are checked when it is published.
    """
    manifest = seal(folder)
    click.echo(f"{folder} is sealed with {len(manifest.files)} files")


@main.command("list")
@hub_options
@click.option("--element", "elements", multiple=True, metavar="SYMBOL", help="Only engines that know it; repeatable.")
@click.option("--subset", metavar="TEXT", help="Only engines for a subset with this in its name.")
@click.option("--commercial", is_flag=True, help="Only engines whose licence allows commercial use.")
@json_option
def list_command(as_json: bool, **choice: Any) -> None:
    """List the engines that zoo knows, and those on the hub.

    The status of each says where its weights come from; the line below the list explains it. Without a network, the
    catalogue and what was fetched before are listed.
    """
    rows = listing(**choice)
    click.echo(json.dumps(rows, indent=1, ensure_ascii=False) if as_json else list_text(rows, _WIDTH))


@main.command("info")
@click.argument("name")
@hub_options
@json_option
def info_command(name: str, hub: str | None, namespace: str, as_json: bool) -> None:
    """Show the facts of engine NAME, without fetching its weights.

    What it is for, its licence, its errors against its teacher, and where it is.
    """
    row, _ = describe(name, hub, namespace=namespace)
    click.echo(json.dumps(row, indent=1, ensure_ascii=False) if as_json else info_text(row))


@main.command("card")
@click.argument("name")
@hub_options
@click.option("--raw", is_flag=True, help="Print the Markdown as it is, with its front matter.")
def card_command(name: str, hub: str | None, namespace: str, raw: bool) -> None:
    """Show the card of engine NAME."""
    _, text = describe(name, hub, namespace=namespace)
    if text is None:
        raise UnknownNameError(f"{name} comes with a package and has no card; run: zoo info {name}")
    if raw and sys.stdout.isatty():
        text = "\n".join(printable(line) for line in text.splitlines()) + "\n"
    elif not raw:
        width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
        text = card_text(text, width, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    click.echo(text, nl=False)


@main.command("pull")
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--to",
    metavar="DIR",
    help="Folder, or file that ends with .tar, to carry where there is no network.  [default: the cache]",
)
@hub_options
def pull_command(names: tuple[str, ...], to: str | None, hub: str | None, namespace: str) -> None:
    """Fetch engines NAMES ahead.

    Without --to they are kept in the cache and load without a network. With --to they become a hub in a folder or a
    tar, to carry to a machine without network.

    \b
    zoo pull sevennet-0/silicon-student --to engines.tar
    """
    result = pull(names, to, hub=hub, namespace=namespace)
    for engine, folder in zip(result.engines, result.folders, strict=True):
        click.echo(f"{engine} is in {result.to or folder}")
    if result.to is not None:
        click.echo(_carry(result.to, namespace))


def _carry(to: Path, namespace: str) -> str:
    """How to use what was pulled where it is carried to."""
    folder = to.stem if to.suffix == ".tar" else to.name
    unpack = f"tar -xf {to.name} && " if to.suffix == ".tar" else ""
    owner = "" if namespace == DEFAULT_NAMESPACE else f" ZOO_NAMESPACE={namespace}"
    return f"There: {unpack}export ZOO_HUB=$PWD/{folder}{owner}"


@main.command("gallery")
@click.argument("folder", type=click.Path(path_type=Path))
@hub_options
def gallery_command(folder: Path, hub: str | None, namespace: str) -> None:
    """Write the cards of a hub's engines to FOLDER, for a browser.

    index.html is a table to sort and filter, and leads to a page a card with its figures. It needs no server.
    """
    click.echo(f"{build_gallery(folder, hub, namespace=namespace)} is written; open it in a browser")


if __name__ == "__main__":
    main()
