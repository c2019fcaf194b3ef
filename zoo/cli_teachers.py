"""``zoo teachers``: what is here of each, environments of their own, weights, and teachers of one's own."""

import json
from pathlib import Path
from typing import Any

import click

from zoo.cli_options import json_option
from zoo.errors import ConfigError
from zoo.fetch_weights import add_teacher, fetch_weights, remove_teacher
from zoo.install_teacher import Source, install, remove
from zoo.teacher_table import teacher_rows, text_of
from zoo.teachers import is_own

_WIDTH = 100  # columns


@click.group("teachers", invoke_without_command=True)
@json_option
@click.pass_context
def teachers(context: click.Context, as_json: bool) -> None:
    """Say which teachers are here, and bring others.

    Without a command: for each family whether its package is here, whether it has an environment of its own, where its
    weights are, and which families cannot be in one environment. Nothing is asked over the network.

    \b
    zoo teachers install mace                   an environment of its own for MACE
    zoo teachers fetch mace-mp-0-large/teacher  weights that no package brings
    zoo teachers add own/my-teacher FILE --family mace --licence MIT --level-of-theory PBE
    zoo teachers remove mace                    its environment; weights stay
    zoo teachers remove own/my-teacher          what was added
    """
    if context.invoked_subcommand is None:
        rows = teacher_rows()
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False) if as_json else text_of(rows, _WIDTH))


@teachers.command("install")
@click.argument("family")
@click.option("--python", metavar="PYTHON", help="Python to make it with, of 3.11 to 3.13.  [default: the one of zoo]")
@click.option(
    "--find-links",
    multiple=True,
    metavar="DIR",
    help="Folder of packages, for a machine without a network: only what is there is taken. Repeatable.",
)
@click.option("--index-url", metavar="URL", help="Index of packages that pip asks, beside such folders too.")
@click.option(
    "--torch-index-url",
    metavar="URL",
    help="Index of builds of PyTorch, for a build that the other index does not have: "
    "https://download.pytorch.org/whl/cpu, or /cu126 for older drivers.",
)
def install_command(family: str, python: str | None, find_links: tuple[str, ...], **indexes: str | None) -> None:
    """Make a virtual environment for FAMILY.

    With the versions of its lock, beside zoo's cache (ZOO_CACHE), where zoo label, zoo distill and zoo bench find it:
    they ask the teacher in a process of its own, so that its packages may differ from those of zoo. What was
    interrupted is made anew when the same is run again.

    \b
    zoo teachers install mace
    """
    source = Source(tuple(map(_found, find_links)), **indexes)
    folder = install(family, python=python, source=source, tell=click.echo)
    click.echo(f"{family} is ready in {folder}")


def _found(place: str) -> str:
    """A folder, a page or an address of packages, as pip takes it from anywhere. Raises ConfigError for none."""
    if "://" in place:
        return place
    if not Path(place).exists():
        raise ConfigError(f"{place} is no folder; give one of packages, which pip wheel -r LOCK -w DIR fills")
    return str(Path(place).absolute())


@teachers.command("remove")
@click.argument("what", metavar="FAMILY|own/NAME")
def remove_command(what: str) -> None:
    """Remove the environments of FAMILY, or the teacher own/NAME.

    Weights that were fetched stay; of a teacher that was added, its copy of the file goes.

    \b
    zoo teachers remove mace
    zoo teachers remove own/my-teacher
    """
    own = is_own(what)
    folders = [folder for folder in (remove_teacher(what),) if folder] if own else remove(what, tell=click.echo)
    for folder in folders:
        click.echo(f"{folder} is removed")
    if not folders:
        click.echo(f"no teacher {what} was added here" if own else f"{what} has no environment here")


@teachers.command("fetch")
@click.argument("name")
@click.option("--accept-licence", is_flag=True, help="Accept the licence of the weights, once, where it restricts.")
@click.option(
    "--accept-digest",
    metavar="sha256:HEX",
    help="What the file is, where zoo knows no digest of it but from third hand or of an earlier download.",
)
def fetch_command(name: str, **accepted: Any) -> None:
    """Fetch the weights of teacher NAME.

    Their licence is shown first. What is here is verified and stays; what was cut goes on when the same is run again.

    \b
    zoo teachers fetch mace-off23-small/teacher --accept-licence
    """
    click.echo(f"the weights of {name} are in {fetch_weights(name, **accepted)}")


@teachers.command("add")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--family", required=True, help="Whose package made it: mace, sevennet, ...")
@click.option("--licence", required=True, metavar="SPDX", help="Of the weights, which their students follow.")
@click.option("--level-of-theory", required=True, metavar="TEXT", help="What its training data were computed with.")
@click.option("--sha256", metavar="HEX", help="Digest that FILE must have.  [default: the one it has]")
@click.option("--head", metavar="NAME", help="Which of several heads, modalities or tasks of FILE.")
@click.option("--citation", default="", metavar="TEXT", help="What to cite for it.")
def add_command(name: str, file: Path, **facts: Any) -> None:
    """Keep FILE, weights of your own, as the teacher NAME.

    NAME is own/ENGINE, which recipes may name from then on. FILE is opened once, in the environment of its family.

    \b
    zoo teachers add own/my-teacher my.model --family mace --licence MIT --level-of-theory PBE
    """
    own = add_teacher(name, file, **facts)
    click.echo(f"{own.name} is added, with {len(own.elements)} elements; a recipe names it as its teacher")
