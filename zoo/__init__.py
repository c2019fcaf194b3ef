"""A model zoo of fast, specialised force-field engines, distilled from foundation models of atoms.

::

    import zoo

    engine = zoo.load("sevennet-0/silicon-student", hub="./hub")
    atoms.calc = engine.calculator()
"""

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
from zoo.version import __version__
from zoo.vibrations import Vibrations

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
]
