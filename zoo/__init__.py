"""A model zoo of fast, specialised force-field engines, distilled from foundation models of atoms.

::

    import zoo

    engine = zoo.load("sevennet-0/silicon-student", hub="./hub")
    atoms.calc = engine.calculator()
"""

from zoo.engine import CheckResult, Engine
from zoo.errors import (
    CapabilityError,
    ConfigError,
    DivergedError,
    DomainError,
    IntegrityError,
    LabelError,
    LicenceError,
    MissingPackageError,
    NotReleasedError,
    PublishError,
    StructureError,
    UnknownNameError,
    ZooError,
)
from zoo.load import load, names
from zoo.potential import Prediction
from zoo.publish import PublishResult, publish
from zoo.vibrations import Vibrations

__all__ = [
    "CapabilityError",
    "CheckResult",
    "ConfigError",
    "DivergedError",
    "DomainError",
    "Engine",
    "IntegrityError",
    "LabelError",
    "LicenceError",
    "MissingPackageError",
    "NotReleasedError",
    "Prediction",
    "PublishError",
    "PublishResult",
    "StructureError",
    "UnknownNameError",
    "Vibrations",
    "ZooError",
    "load",
    "names",
    "publish",
]
