"""Which families of teachers cannot be in one environment: found from what their packages require, never written down.

What the packages of a family require is read from those that are installed here, else from the lock of the family,
which was written with it. Two clash over a package where none of its versions that zoo knows of, those of both locks
and the one that is here, is what both require.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import combinations

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from zoo.teachers.environments import Pin, lock_path, locked, normal_name, read_lock
from zoo.teachers.families import FAMILIES, Family


@dataclass(frozen=True)
class Clash:
    """Two families, and what they require of one package."""

    families: tuple[str, str]
    package: str
    required: tuple[str, str]  # such as "==0.4.4" and ">=0.5"


def clashes() -> list[Clash]:
    """Each pair once, with the first package that they clash over. Raises ConfigError for a lock that is none."""
    able = [family for key, family in FAMILIES.items() if key in locked()]
    pins = {family.key: read_lock(lock_path(family.key)) for family in able}
    wanted = {family.key: _required(family, pins[family.key]) for family in able}
    pairs = ((one.key, other.key) for one, other in combinations(able, 2))
    return [found for one, other in pairs for found in _between(one, other, wanted, pins)]


def packages_of(family: Family) -> dict[str, str | None]:
    """The packages of a family, each with its version here; None where it is not here."""
    return {package: _version(package) for package in family.install.split()}


def requirements(package: str) -> tuple[str, ...] | None:
    """What an installed package requires on this machine, without its extras; None where it is not installed."""
    try:
        told = requires(package) or ()
    except PackageNotFoundError:
        return None
    return tuple(_without_marker(one) for one in map(_parsed, told) if one is not None and _applies(one))


def _between(
    one: str, other: str, wanted: dict[str, dict[str, SpecifierSet]], pins: dict[str, dict[str, Pin]]
) -> Iterator[Clash]:
    for package in sorted(wanted[one].keys() & wanted[other].keys()):
        both = wanted[one][package] & wanted[other][package]
        pinned = [lock[package].version for lock in (pins[one], pins[other]) if package in lock]
        known = {*pinned, *([here] if (here := _version(package)) else [])}
        if known and not any(both.contains(version, prereleases=True) for version in known):
            yield Clash((one, other), package, (str(wanted[one][package]), str(wanted[other][package])))
            return


def _required(family: Family, pins: dict[str, Pin]) -> dict[str, SpecifierSet]:
    """Package -> the versions that a family's packages are content with."""
    found: dict[str, SpecifierSet] = {}
    for package in family.install.split():
        pin = pins.get(normal_name(package))
        told = requirements(package)
        for text in told if told is not None else pin.needs if pin is not None else ():
            requirement = Requirement(text)
            name = normal_name(requirement.name)
            found[name] = found.get(name, SpecifierSet()) & requirement.specifier
    return found


def _parsed(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:  # of an old package, which says nothing that pip would hold to
        return None


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _without_marker(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
