"""What is known of a teacher by its name alone, of the catalogue's and of one's own."""

from dataclasses import dataclass

from ase.data import chemical_symbols

from zoo.hub.catalogue import Entry, entries
from zoo.licences import Source
from zoo.potential import Traits
from zoo.teachers import Teacher, absent, is_own, own_teacher, stated_traits


@dataclass(frozen=True)
class TeacherFacts:
    """What recipes are held against before their teacher is loaded."""

    name: str
    elements: tuple[str, ...]  # symbols
    licence_weights: str  # SPDX
    level_of_theory: str | None
    traits: Traits | None  # None where only the loaded teacher can tell


def teacher_facts(name: str, teacher: Teacher | None = None) -> TeacherFacts | None:
    """The facts of a teacher; None of one of one's own that is not known here.

    ``teacher`` is one that was handed over in Python, and speaks for itself where it goes by that name.
    """
    if teacher is not None and teacher.name == name:
        return _said_by(teacher)
    if (entry := entries().get(name)) is not None:
        return TeacherFacts(name, entry.elements, entry.licence_weights, entry.level_of_theory, stated_traits(name))
    own = own_teacher(name) if is_own(name) else None
    if own is None:
        return None
    return TeacherFacts(name, tuple(own.elements), own.licence, own.level_of_theory, None)


def teacher_terms(name: str, teacher: Teacher | None = None) -> list[Source]:
    """The licence of a teacher's weights as a source of a student; nothing where it is not known here."""
    facts = teacher_facts(name, teacher)
    return [] if facts is None else [Source("teacher", name, facts.licence_weights)]


def why_not(name: str) -> str | None:
    """Why a teacher cannot be run here, what helps first, and which one can teach the same subset meanwhile.

    That one has a level of theory and a licence of its own, which are said.
    """
    why, other = absent(name), _stand_in(name)
    if why is None or other is None:
        return why
    facts = f"{other.level_of_theory}; {other.licence_weights}"
    return f"{why}; meanwhile {other.name} ({facts}) can teach the same subset"


def _stand_in(name: str) -> Entry | None:
    """Of the catalogue's teachers the first that is here and knows the same elements and kind of structures."""
    entry = entries().get(name)
    if entry is None or entry.periodic is None:
        return None
    for other in entries().values():
        same = other.status == "package" and other.periodic == entry.periodic
        if same and set(entry.elements) <= set(other.elements) and absent(other.name) is None:
            return other
    return None


def _said_by(teacher: Teacher) -> TeacherFacts:
    potential = teacher.potential
    return TeacherFacts(
        teacher.name,
        tuple(chemical_symbols[number] for number in potential.elements),
        teacher.licence_weights,
        teacher.level_of_theory,
        potential.traits,
    )
