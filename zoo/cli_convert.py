"""``zoo convert``: weights of JMP, fetched or of one's own, for the teachers of that name."""

from pathlib import Path
from typing import Any

import click

from zoo.acceptance import check_accepted
from zoo.convert import convert, without_key
from zoo.errors import ConfigError, HubError
from zoo.hub.cache import is_offline
from zoo.teachers.jmp.config import LICENCE, MOLECULAR, PUBLISHED


@click.command("convert")
@click.argument("family", metavar="FAMILY", type=click.Choice(list(PUBLISHED)))
@click.argument("source", metavar="[FILE-OR-URL]", required=False)
@click.option("--download", is_flag=True, help="Fetch what the authors of FAMILY publish, and convert that.")
@click.option("--name", metavar="NAME", help="Teacher that it becomes.  [default: FAMILY/teacher]")
@click.option(
    "--head", default="ani1x", show_default=True, type=click.Choice(list(MOLECULAR)), help="Of a pre-trained file."
)
@click.option(
    "--weights",
    default="ema",
    show_default=True,
    type=click.Choice(["ema", "raw"]),
    help="Averaged over training, as their authors use them, or the last of training.",
)
@click.option("--energy-scale", type=float, metavar="EV", help="What energies were divided by.  [default: FILE says]")
@click.option("--force-scale", type=float, metavar="EV/Å", help="What forces were divided by.  [default: FILE says]")
@click.option("--level-of-theory", metavar="TEXT", help="Of the data it was trained on.  [default: of JMP or MD22]")
@click.option("--elements", metavar="SYMBOLS", help="That it was trained on.  [default: H,C,N,O]")
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Folder of the weights.  [default: teachers/NAME in ZOO_CACHE]",
)
@click.option("--replace", is_flag=True, help="Replace weights that are there.")
@click.option("--accept-digest", is_flag=True, help="Take a download of another size or digest than zoo has heard of.")
@click.option("--accept-licence", is_flag=True, help="Accept the licence of what is published, once.")
def convert_command(
    family: str, source: str | None, download: bool, elements: str | None, accept_licence: bool, **options: Any
) -> None:
    """Convert a checkpoint of JMP, so that its teacher can be loaded.

    FAMILY is jmp-s or jmp-l. Without FILE-OR-URL and --download, says what there is to fetch. A pre-trained file
    becomes FAMILY/teacher, a fine-tune on MD22, with --name, FAMILY/md22-teacher. Nothing in the file is run.

    \b
    zoo convert jmp-l --download --accept-licence
    zoo convert jmp-l jmp-l.pt --head transition1x
    zoo convert jmp-l mine.ckpt --name jmp-l/md22-teacher

    \b
    Published, CC-BY-NC-4.0, and fetched with --download alone:
    https://jmp-iclr-datasets.s3.amazonaws.com/jmp-s.pt   about 0.7 GB
    https://jmp-iclr-datasets.s3.amazonaws.com/jmp-l.pt   3.7 GB
    """
    published = PUBLISHED[family]
    if source is not None and download:
        raise ConfigError("both a file or address and --download are given; give one of them")
    if source is None and not download:
        click.echo(_offer(family))
        return
    address = source if source is not None else published.url
    if address.startswith(("http://", "https://")):
        if is_offline():
            raise HubError(f"HF_HUB_OFFLINE is set; unset it, or give a copy of your own: zoo convert {family} FILE")
        click.echo(f"{without_key(address)}\nlicence: {LICENCE}, not for commercial use")
        if address == published.url:
            command = f"zoo convert {family} --download --accept-licence"
            check_accepted(f"{family}/teacher", LICENCE, accept=accept_licence, command=command)
    symbols = tuple(symbol.strip() for symbol in elements.split(",")) if elements is not None else None
    click.echo(convert(family, address, elements=symbols, **options))


def _offer(family: str) -> str:
    published = PUBLISHED[family]
    seen = f", {published.bytes:,} bytes" if published.bytes else ""
    return "\n".join(
        [
            f"{family} is published at {published.url} ({published.size}{seen}; {published.kept} are kept)",
            f"licence: {LICENCE}, not for commercial use; so is what learns from it",
            f"fetch and convert it:      zoo convert {family} --download --accept-licence",
            f"convert a copy of it:      zoo convert {family} FILE",
            f"convert your fine-tune:    zoo convert {family} FILE --name {family}/md22-teacher",
        ]
    )
