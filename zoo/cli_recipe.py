"""The commands about recipes: ``zoo recipe check | new | diff | lock``, and ``zoo reproduce``."""

import json
import sys
from pathlib import Path

import click

from zoo.cli_options import hub_options, json_option
from zoo.errors import ConfigError
from zoo.files import atomic_write
from zoo.recipe import read_recipe, to_yaml
from zoo.recipe_check import check_recipe
from zoo.recipe_diff import diff_recipes
from zoo.recipe_new import OWN_FORMATS, format_of, new_recipe
from zoo.reproduce import lock_recipe, plan_text, read_published, reproduce, run_of

_RUN = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path)


@click.group("recipe")
def recipe_group() -> None:
    """Check, begin, compare and lock recipes.

    A recipe is a name (sevennet-0/silicon-student) or the path of a .yaml file.
    """


@recipe_group.command("check")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
def check_command(recipes: tuple[str, ...]) -> None:
    """Say all that is wrong with RECIPES, each with its line.

    Beyond the form of the file: whether its data sets exist, its licence may follow theirs and the teacher's, teacher
    and student know the elements, and the teacher gives what the loss wants. Nothing is fetched or loaded. Exits with 1
    where there is a problem.
    """
    problems = {recipe: check_recipe(recipe) for recipe in recipes}
    for recipe, found in problems.items():
        click.echo("\n".join(found) if found else f"ok {recipe}")
    if any(problems.values()):
        sys.exit(1)


@recipe_group.command("new")
@click.argument("name")
@click.option("--data", type=_FILE, metavar="FILE", help="Frames to learn from, such as frames.extxyz.")
@click.option("--teacher", metavar="NAME", help="Who labels them; zoo list shows teachers.")
@click.option("--output", type=_FILE, metavar="FILE", help="Where to write it.  [default: ENGINE.yaml]")
@click.option("--format", "form", type=click.Choice(OWN_FORMATS), help="Of the frames.  [default: by their name]")
@click.option("--data-licence", metavar="SPDX", help="Terms of the frames, such as CC-BY-4.0.")
def new_command(
    name: str,
    data: Path | None,
    teacher: str | None,
    output: Path | None,
    form: str | None,
    data_licence: str | None,
) -> None:
    """Begin a recipe NAME (FAMILY/ENGINE) from frames of your own.

    Reads them, says what they hold, and writes a complete recipe with comments, to change as you like. Nothing is
    overwritten.

    \b
    zoo recipe new sw/my-student --data frames.extxyz --teacher stillinger-weber/teacher
    """
    data = data or Path(_asked("--data", "File of frames"))
    if form is None and data.exists():
        form = _format(data)
    teacher = teacher or _asked("--teacher", "Teacher")
    begun = new_recipe(name, data, teacher, output=output, format=form, data_licence=data_licence)
    for line in begun.found:
        click.echo(line)
    click.echo("division: " + ", ".join(f"{count} frames {split}" for split, count in begun.sides.items()))
    click.echo(f"{begun.path} is written. Read it, then: zoo distill {begun.path} --dry-run")


def _format(data: Path) -> str:
    """The format that the name of a file tells, or the person in front of it."""
    try:
        return format_of(data)
    except ConfigError:
        return _asked("--format", "Format", OWN_FORMATS)


def _asked(option: str, question: str, choices: tuple[str, ...] | None = None) -> str:
    """The answer of the person at the terminal. Raises UsageError where nobody is there to ask."""
    if not at_terminal():
        known = f", one of {', '.join(choices)}" if choices else ""
        raise click.UsageError(f"{option} is missing, and there is no terminal to ask at; give it{known}")
    answer: str = click.prompt(question, type=click.Choice(choices) if choices else str)
    return answer


def at_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty()


@recipe_group.command("diff")
@click.argument("first")
@click.argument("second")
@json_option
def diff_command(first: str, second: str, as_json: bool) -> None:
    """Show what recipes FIRST and SECOND differ in, key by key.

    What a recipe does not give has its default. Groups are matched by their names.
    """
    found = diff_recipes(first, second)
    if as_json:
        click.echo(json.dumps([one.as_dict() for one in found], indent=1, ensure_ascii=False))
    else:
        click.echo("\n".join(map(str, found)) or "no difference")


@recipe_group.command("lock")
@click.argument("recipe")
@click.option("--run", "folder", type=_RUN, help="Folder of the run.  [default: runs/FAMILY/ENGINE]")
@click.option("--output", type=_FILE, metavar="FILE", help="Where to write it.  [default: print it]")
def lock_command(recipe: str, folder: Path | None, output: Path | None) -> None:
    """Write RECIPE with the lock of its run.

    The lock holds the digests of data, structures, labels, code and the teacher's weights, and versions. The run must
    have its labels. A locked recipe is refused where it would give something else.
    """
    if output is not None and output.exists():
        raise ConfigError(f"{output} exists and is not overwritten; choose another --output, or remove it")
    text = to_yaml(lock_recipe(read_recipe(recipe), folder))
    if output is None:
        click.echo(text, nl=False)
    else:
        atomic_write(output, text)
        click.echo(f"{output} is locked")


@click.command("reproduce")
@click.argument("name")
@click.option("--check", is_flag=True, help="Carry the recipe out and compare; without it, say what would be done.")
@click.option("--run", "folder", type=_RUN, help="Folder of the new run.  [default: runs/FAMILY/ENGINE-reproduced]")
@hub_options
@json_option
def reproduce_command(
    name: str, check: bool, folder: Path | None, namespace: str, hub: str | None, as_json: bool
) -> None:
    """Make engine NAME again, and compare it with its report.

    NAME is FAMILY/ENGINE, a model folder (./folder) or the folder of a run. The comparison says of each figure whether
    it lies in the band; it exits with 1 where one does not. It may take as long as the first time, and goes on where it
    was interrupted.
    """
    published = read_published(name, hub=hub, namespace=namespace)
    run = run_of(published, folder)
    if not as_json or not check:
        click.echo(plan_text(published, run))
    if not check:
        where = f" --hub {hub}" if hub else ""
        click.echo(f"\nTo do it: zoo reproduce {name} --check{where}")
        return
    result = reproduce(published, run)
    click.echo(json.dumps(result.as_dict(), indent=1, ensure_ascii=False) if as_json else f"\n{result}")
    if not result.passed:
        sys.exit(1)
