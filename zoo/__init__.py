"""A model zoo of fast, specialised force-field engines, distilled from foundation models of atoms.

::

    import zoo

    engine = zoo.load("sevennet-0/silicon-student", hub="./hub")
    atoms.calc = engine.calculator()

    teacher = zoo.teacher_from(calculator, name="own/my-dft", ...)  # any calculator of ASE
    zoo.run_recipe("recipe.yaml", teacher=teacher)
"""

import importlib
from typing import TYPE_CHECKING, Any

from zoo.engine import CheckResult, Engine
from zoo.errors import (
    AccessError,
    CapabilityError,
    ConfigError,
    DivergedError,
    DomainError,
    HubError,
    IntegrityError,
    LabelError,
    LicenceError,
    MissingPackageError,
    NotReleasedError,
    OutOfMemoryError,
    PublishError,
    StructureError,
    UnknownNameError,
    WorkerError,
    ZooError,
    ZooWarning,
)
from zoo.load import load, names
from zoo.potential import Prediction
from zoo.publish import PublishResult, publish
from zoo.pull import PullResult, pull
from zoo.teachers.calculators import teacher_from
from zoo.version import __version__
from zoo.vibrations import Vibrations

if TYPE_CHECKING:
    from zoo.chain import run_recipe


def __getattr__(name: str) -> Any:
    """``run_recipe``, imported when it is asked for: training takes much that engines at work do not."""
    if name == "run_recipe":
        return importlib.import_module("zoo.chain").run_recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AccessError",
    "CapabilityError",
    "CheckResult",
    "ConfigError",
    "DivergedError",
    "DomainError",
    "Engine",
    "HubError",
    "IntegrityError",
    "LabelError",
    "LicenceError",
    "MissingPackageError",
    "NotReleasedError",
    "OutOfMemoryError",
    "Prediction",
    "PublishError",
    "PublishResult",
    "PullResult",
    "StructureError",
    "UnknownNameError",
    "Vibrations",
    "WorkerError",
    "ZooError",
    "ZooWarning",
    "__version__",
    "load",
    "names",
    "publish",
    "pull",
    "run_recipe",
    "teacher_from",
]
