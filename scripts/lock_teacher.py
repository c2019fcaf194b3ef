"""Writes the lock of a family of teachers: the versions of an environment in which its teachers were seen to run.

    scripts/lock_teacher.py mace /path/to/environment/bin/python > zoo/teachers/locks/mace.txt

Beside the packages of the family stands what they require, from which zoo finds which families clash. What PyTorch's
build for one machine brings along is left out: pip finds that of each machine. So is what neither the family nor zoo
requires, of whatever else the environment holds.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from zoo.teachers.environments import normal_name
from zoo.teachers.families import FAMILIES

_ASK = """
import importlib.metadata, json
found = importlib.metadata.distributions()
print(json.dumps({one.name: [one.version, one.requires or []] for one in found}))
"""
_LEFT_OUT = ("pip", "wheel", "triton", "mlff-zoo")
_OF_A_BUILD = ("nvidia-", "cuda-")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the lock of a family of teachers.")
    parser.add_argument("family", choices=[key for key, family in FAMILIES.items() if family.imports])
    parser.add_argument("python", type=Path)
    asked = parser.parse_args()
    told = subprocess.run([asked.python, "-I", "-c", _ASK], capture_output=True, text=True, check=True).stdout
    sys.stdout.write(lock_text(asked.family, json.loads(told)))


def lock_text(family: str, installed: dict[str, tuple[str, list[str]]]) -> str:
    """The lines of a lock, by name: the packages of the family, those of zoo, and all that these require in turn."""
    known = {normal_name(name): facts for name, facts in installed.items()}
    own = [normal_name(package) for package in FAMILIES[family].install.split()]
    lines = []
    for name in sorted(_closure([*own, *_of_zoo()], known)):
        if name not in _LEFT_OUT and not name.startswith(_OF_A_BUILD):
            version, requires = known[name]
            needs = f"  # needs {', '.join(_needs(requires))}" if name in own and _needs(requires) else ""
            lines.append(f"{name}=={version.partition('+')[0]}{needs}\n")
    return "".join(lines)


def _of_zoo() -> list[str]:
    """What zoo itself requires."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [normal_name(Requirement(text).name) for text in project["dependencies"]]


def _closure(wanted: list[str], known: dict[str, tuple[str, list[str]]]) -> set[str]:
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in found or name not in known:
            continue
        found.add(name)
        wanted += [normal_name(Requirement(text).name) for text in _needs(known[name][1])]
    return found


def _needs(requires: list[str]) -> list[str]:
    """Requirements that hold here, without the extras."""
    found = [Requirement(text) for text in requires]
    held = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    return sorted(f"{normal_name(one.name)}{one.specifier}" for one in held)


if __name__ == "__main__":
    main()
