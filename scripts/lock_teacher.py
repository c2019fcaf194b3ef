"""Writes the lock of a family of teachers: the versions of an environment in which its teachers were seen to run.

    scripts/lock_teacher.py mace /path/to/environment/bin/python --newest 3.13 > zoo/teachers/locks/mace.txt

The first line says for which versions of Python: from that of the environment to the newest for which all of it is to
be had. Beside the packages of the family stands what they require, from which zoo finds which families clash. What
PyTorch's build for one machine brings along is left out: pip finds that of each machine. So is what neither the family
nor zoo requires. What is required on some systems alone is pinned with that condition.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement

from zoo.teachers.environments import normal_name
from zoo.teachers.families import FAMILIES

_ASK = """
import importlib.metadata, json
from packaging.markers import default_environment
found = importlib.metadata.distributions()
print(json.dumps([{one.name: [one.version, one.requires or []] for one in found}, default_environment()]))
"""
_LEFT_OUT = ("pip", "wheel", "mlff-zoo")
_OF_SYSTEMS = re.compile(r"sys_platform|platform_system|platform_machine|os_name")


@dataclass(frozen=True)
class Installed:
    """The packages of an environment, and what it says of itself to conditions."""

    packages: dict[str, tuple[str, list[str]]]  # name -> version, requirements
    system: dict[str, str]

    def required(self, name: str, extras: Iterable[str] = ()) -> Iterator[Requirement]:
        """What a package requires there, with these extras of it."""
        for text in self.packages[name][1]:
            one = Requirement(text)
            if one.marker is None or any(
                one.marker.evaluate(self.system | {"extra": extra}) for extra in ("", *extras)
            ):
                yield one

    def closure(self, wanted: list[Requirement]) -> dict[str, str]:
        """All that is required in turn -> the condition on systems under which alone, or nothing."""
        found: dict[str, str] = {}
        later: list[Requirement] = []  # what some systems alone require
        seen: set[tuple[str, frozenset[str], str]] = set()
        while wanted or later:
            one = wanted.pop() if wanted else later.pop()
            name, condition = normal_name(one.name), str(one.marker or "")
            if name not in self.packages or (name, frozenset(one.extras), condition) in seen:
                continue
            seen.add((name, frozenset(one.extras), condition))
            found.setdefault(name, condition)
            for next_one in self.required(name, one.extras):
                of_systems = _of_systems(next_one)
                if name == "torch" and of_systems:
                    continue
                next_one.marker = _both(one.marker, next_one.marker) if of_systems else one.marker
                (wanted if next_one.marker is None else later).append(next_one)
        return found


def _of_systems(requirement: Requirement) -> bool:
    """Whether it holds on some systems alone, as far as a lock can say so, which knows of no extras."""
    condition = str(requirement.marker or "")
    return _OF_SYSTEMS.search(condition) is not None and "extra" not in condition


def _both(one: Marker | None, other: Marker | None) -> Marker | None:
    return Marker(f"({one}) and ({other})") if one is not None and str(one) != str(other) else other


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the lock of a family of teachers.")
    parser.add_argument("family", choices=[key for key, family in FAMILIES.items() if family.imports])
    parser.add_argument("python", type=Path)
    parser.add_argument("--newest", metavar="X.Y", help="Newest Python of all pins.  [default: that of PYTHON]")
    asked = parser.parse_args()
    told = subprocess.run([asked.python, "-I", "-c", _ASK], capture_output=True, text=True, check=True).stdout
    packages, system = json.loads(told)
    installed = Installed({normal_name(name): tuple(facts) for name, facts in packages.items()}, system)
    sys.stdout.write(lock_text(asked.family, installed, asked.newest or system["python_version"]))


def lock_text(family: str, installed: Installed, newest: str) -> str:
    """The lines of a lock, by name: the packages of the family, those of zoo, and all that these require in turn."""
    own = [normal_name(package) for package in FAMILIES[family].install.split()]
    lines = [f"# python {installed.system['python_version']}-{newest}\n"]
    for name, condition in sorted(installed.closure([Requirement(one) for one in [*own, *_of_zoo()]]).items()):
        if name not in _LEFT_OUT:
            needs = ", ".join(sorted(f"{normal_name(one.name)}{one.specifier}" for one in installed.required(name)))
            noted = f"  # needs {needs}" if name in own and needs else ""
            where = f" ; {condition}" if condition else ""
            lines.append(f"{name}=={installed.packages[name][0].partition('+')[0]}{where}{noted}\n")
    return "".join(lines)


def _of_zoo() -> list[str]:
    """What zoo itself requires."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [normal_name(Requirement(text).name) for text in project["dependencies"]]


if __name__ == "__main__":
    main()
