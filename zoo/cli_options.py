"""Options that several commands have."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

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
