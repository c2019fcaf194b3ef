"""Options that several commands have, and the structures that they are given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ase.io
import click
from ase import Atoms

from zoo.errors import StructureError, UnknownNameError
from zoo.naming import DEFAULT_NAMESPACE

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def hub_options(command: F) -> F:
    """Where engines are fetched from or published to."""
    for decorate in (
        click.option(
            "--namespace",
            envvar="ZOO_NAMESPACE",
            default=DEFAULT_NAMESPACE,
            show_default=True,
            show_envvar=True,
            metavar="NAME",
            help="Owner of the engines on the hub.",
        ),
        click.option(
            "--hub",
            envvar="ZOO_HUB",
            show_envvar=True,
            metavar="HUB",
            help="Hub of published engines: a URL, or a folder such as ./hub.  [default: huggingface.co]",
        ),
    ):
        command = decorate(command)
    return command


def device_options(command: F) -> F:
    """Where an engine runs, and in which precision."""
    for decorate in (
        click.option(
            "--dtype",
            default="float32",
            show_default=True,
            type=click.Choice(["float32", "float64"]),
            help="Precision: float32 is fast, float64 is exact.",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="DEVICE",
            help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.",
        ),
    ):
        command = decorate(command)
    return command


def engine_options(command: F) -> F:
    """Which hub an engine is from, and how it runs here."""
    compile_option = click.option(
        "--compile/--no-compile",
        "compile",
        default=None,
        callback=lambda context, option, value: "auto" if value is None else value,
        help="Compiled code for energies and forces, where zoo has some.  [default: where it agrees]",
    )
    return hub_options(device_options(compile_option(command)))


def read_structures(path: Path, index: str = ":") -> list[Atoms]:
    """The structures in a file, or a slice of them as ASE writes it; there is at least one.

    Raises UnknownNameError for no such file, StructureError for one that cannot be read.
    """
    formats = "give a structure in a format that ASE reads, such as .xyz or .cif"
    if not path.is_file():
        raise UnknownNameError(f"no file {path}; {formats}")
    try:
        found = ase.io.read(path, index=index)
    except Exception as error:  # ASE's readers raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StructureError(f"{path} cannot be read as a structure ({reason}); {formats}") from error
    if not found or not all(isinstance(atoms, Atoms) for atoms in found):
        raise StructureError(f"{path} holds no structure; {formats}")
    return list(found)
