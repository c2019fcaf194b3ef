"""All that is wrong with a recipe, beyond its form, with the line of each."""

import warnings
from collections.abc import Iterator
from pathlib import Path

from ase.formula import Formula

from zoo.acceptance import text_to_repeat
from zoo.config import Document, Place, load_yaml, parse
from zoo.data.sources import get_file, get_source
from zoo.data.structures import perfect_crystal
from zoo.data.subsets import data_terms
from zoo.errors import LicenceError, UnknownNameError, ZooError, ZooWarning
from zoo.licences import check_terms, unstated
from zoo.naming import is_engine_name
from zoo.neighbors import build_graph
from zoo.potential import Traits
from zoo.recipe import Recipe, loss_from, read_recipe, recipe_folder
from zoo.teacher_facts import TeacherFacts, teacher_facts, teacher_terms

CUTOFFS = (3.0, 12.0)  # Å: in less, an atom sees its bonds alone; in more, a few hundred others

Complaint = tuple[Place, str]


def check_recipe(name_or_path: str | Path) -> list[str]:
    """All that is wrong with a recipe, a line of text each: with its file and, where it has one, the line there.

    What goes beyond the schema is looked at where the schema has nothing to say. Warns where nobody has stated the
    terms of a data set, where the text of a licence that must be passed on is not here, and where what is known of a
    teacher of one's own is not enough to check all.
    """
    try:
        return check_recipe_file(recipe_path(name_or_path))
    except ZooError as error:
        return [str(error)]


def check_recipe_file(path: Path) -> list[str]:
    """The same of a file, whatever its name. Raises ConfigError for what is no YAML."""
    document = load_yaml(path)
    problems = document.problems(Recipe)
    if problems:
        return problems
    recipe = parse(Recipe, document.data, str(path))
    found = sorted((document.line_of(place), text) for place, text in _complaints(recipe, document))
    return [f"{path}:{line}: {text}" for line, text in found]


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a recipe by name or path. Raises UnknownNameError where there is none."""
    path = Path(name_or_path).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        path = recipe_folder() / f"{name_or_path}.yaml"
        if not is_engine_name(str(name_or_path)) or not path.is_file():
            read_recipe(name_or_path)
    elif not path.is_file():
        read_recipe(path)
    return path


def _complaints(recipe: Recipe, document: Document) -> Iterator[Complaint]:
    """What is wrong with a recipe that its schema allows, and where."""
    shipped = document.path.is_relative_to(recipe_folder())
    expected = document.path.relative_to(recipe_folder()).with_suffix("").as_posix() if shipped else recipe.name
    if recipe.name != expected:
        yield ("name",), f"name is {recipe.name}, expected {expected}; a recipe's name is its path"
    known = [*_source_complaints(recipe)]
    yield from known
    if not known:
        yield from _licence_complaints(recipe)
    facts = teacher_facts(recipe.teacher.name)
    _tell_unchecked(recipe.teacher.name, facts)
    yield from _element_complaints(recipe, facts)
    yield from _cutoff_complaints(recipe)
    if facts is not None and facts.traits is not None:
        yield from _signal_complaints(recipe, facts.traits)


def _tell_unchecked(name: str, facts: TeacherFacts | None) -> None:
    """Warns of what could not be checked for want of facts of a teacher of one's own."""
    if facts is None:
        told = "is not known here: zoo label and zoo distill check its licence, its elements and what it gives"
    elif facts.traits is None:
        told = "is opened only by zoo label and zoo distill, which then check that it gives what loss and labels want"
    else:
        return
    warnings.warn(f"{name} {told}", ZooWarning, stacklevel=2)


def _source_complaints(recipe: Recipe) -> Iterator[Complaint]:
    """Data sets and files of them that there are not."""
    for key, subset in recipe.structures.subsets.items():
        if subset.source is None:
            continue
        place = ("structures", "subsets", key)
        try:
            source = get_source(subset.source)
        except UnknownNameError as error:
            yield (*place, "source"), str(error)
            continue
        for number, file in enumerate(subset.files or ()):
            try:
                get_file(source, file)
            except UnknownNameError as error:
                yield (*place, "files", number), str(error)


def _licence_complaints(recipe: Recipe) -> Iterator[Complaint]:
    """Terms that a student of this teacher and these data may not have."""
    terms = [*teacher_terms(recipe.teacher.name), *data_terms(recipe)]
    for told in unstated(terms).values():
        warnings.warn(told, ZooWarning, stacklevel=2)
    try:
        check_terms(recipe.name, recipe.licence, terms)
    except ZooError as error:
        yield ("licence",), str(error)
        return
    try:
        text_to_repeat(terms)
    except LicenceError as error:  # nothing is wrong with the recipe
        warnings.warn(str(error), ZooWarning, stacklevel=2)


def _element_complaints(recipe: Recipe, facts: TeacherFacts | None) -> Iterator[Complaint]:
    """Elements that the teacher or the student does not know."""
    strange = [] if facts is None or not facts.elements else sorted(set(recipe.student.elements) - set(facts.elements))
    if strange:
        text = f"student.elements has {', '.join(strange)}, which {recipe.teacher.name} does not know; remove"
        yield ("student", "elements"), f"{text} {'it' if len(strange) == 1 else 'them'}, or take another teacher"
    for place, wanted in _wanted_elements(recipe):
        missing = sorted(wanted - set(recipe.student.elements))
        if missing:
            yield place, f"{'.'.join(map(str, place))} asks for {', '.join(missing)}, which student.elements lacks"


def _wanted_elements(recipe: Recipe) -> Iterator[tuple[Place, set[str]]]:
    """What frames must hold."""
    for number, group in enumerate(recipe.structures.groups):
        if group.kind == "frames" and group.element is not None:
            yield ("structures", "groups", number, "element"), {group.element}
    for key, subset in recipe.structures.subsets.items():
        place: Place = ("structures", "subsets", key, "filters")
        if subset.filters.element is not None:
            yield (*place, "element"), {subset.filters.element}
        if subset.filters.formula is not None:
            yield (*place, "formula"), set(Formula(subset.filters.formula).count())


def _cutoff_complaints(recipe: Recipe) -> Iterator[Complaint]:
    cutoff, (least, most) = recipe.student.cutoff, CUTOFFS
    if not least <= cutoff <= most:
        yield ("student", "cutoff"), f"student.cutoff is {cutoff:g} Å, expected {least:g} to {most:g}"
        return
    crystal = recipe.structures.crystal
    if crystal is not None and build_graph(perfect_crystal(crystal), cutoff).num_edges == 0:
        text = f"no atom of the crystal has a neighbour within student.cutoff, {cutoff:g} Å; raise it, or correct"
        yield ("student", "cutoff"), f"{text} lattice_constant"


def _signal_complaints(recipe: Recipe, traits: Traits) -> Iterator[Complaint]:
    """What the loss or the labels want of a teacher that cannot give it."""
    loss, labels, teacher = recipe.loss, recipe.labels, recipe.teacher.name
    for part, gives in (("energy", traits.energies), ("stress", traits.stress)):
        if loss_from(loss, part) == "teacher" and not gives:
            text = f"loss.{part} has a weight, but {teacher} gives no {part}"
            yield ("loss", part), f"{text}; set it to 0, or loss.{part}_from to dataset"
    extras = {"atomic_energies": traits.atomic_energies and traits.energies, "features": traits.features > 0}
    for number, extra in enumerate(labels.extras):
        if not extras[extra]:
            text = f"labels.extras asks for {extra}, which {teacher} does not give"
            yield ("labels", "extras", number), f"{text}; remove it"
    if labels.side != "rows" and traits.conservative:
        text = f"labels.side is {labels.side}, but the Hessian of {teacher} is symmetric"
        yield ("labels", "side"), f"{text}; leave the line out"
