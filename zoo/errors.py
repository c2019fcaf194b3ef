"""Every error that zoo raises on purpose.

::

    ZooError
    ├── ConfigError          a recipe or a config file says what it must not
    ├── StructureError       atoms that no potential could take: NaN, two atoms on one spot, no cell
    │   └── DomainError      atoms that this engine was not made for
    ├── UnknownNameError     no such engine, recipe, teacher or file
    ├── NotReleasedError     a name that is known, whose weights nobody has released
    ├── MissingPackageError  an optional package is not installed
    ├── CapabilityError      a potential was asked for what it cannot give
    ├── OutOfMemoryError     one structure alone does not fit into the memory there is
    ├── IntegrityError       a file differs from what its digest or its format says
    ├── LabelError           labels of another teacher, or of other structures
    ├── DivergedError        numbers became infinite or undefined
    ├── WorkerError          another process of the same run has ended
    ├── HubError             a hub cannot be reached, keeps silent, or answers what no hub would
    ├── AccessError          a hub refuses: no token, the wrong one, or terms that were not accepted
    └── PublishError         an engine may not, or cannot, be published
        └── LicenceError     its terms would be weaker than its teacher's

    ZooWarning               what a user should know of a result that he got all the same

Each message is one line: what was got, what was expected, what to do next. Where a built-in exception says the same,
the class is that too, so that ``except ValueError`` does what its author meant.
"""


class ZooError(Exception):
    """Root of all errors of zoo."""


class ConfigError(ZooError, ValueError):
    """A recipe or a config file is not what its schema says."""


class StructureError(ZooError, ValueError):
    """A structure that no potential could take."""


class DomainError(StructureError):
    """A structure outside the domain of the engine that was asked."""


class UnknownNameError(ZooError, LookupError):
    """A name that nothing goes by."""


class NotReleasedError(ZooError, LookupError):
    """A name of the catalogue whose weights nobody has released."""


class MissingPackageError(ZooError, ImportError):
    """An optional package is not installed."""


class CapabilityError(ZooError, ValueError):
    """A potential was asked for something it cannot give."""


class OutOfMemoryError(ZooError, MemoryError):
    """One structure alone, or what was asked of it, does not fit into the memory there is."""


class IntegrityError(ZooError):
    """A file is not what its digest, or its format, says it is."""


class LabelError(ZooError, ValueError):
    """Labels that belong to another teacher or to other structures."""


class DivergedError(ZooError, ArithmeticError):
    """Training or dynamics left the realm of finite numbers."""


class WorkerError(ZooError, RuntimeError):
    """Another process of the same run has ended or cannot be reached."""


class HubError(ZooError, ConnectionError):
    """A hub that cannot be reached, does not answer in time, or answers what no hub would."""


class AccessError(ZooError, PermissionError):
    """A hub that refuses, for want of a token, of rights, or of terms that were accepted."""


class PublishError(ZooError):
    """An engine could not be published."""


class LicenceError(PublishError):
    """An engine may not be published under the terms it states."""


class ZooWarning(UserWarning):
    """What a user should know of a result that he got all the same: its age, a newer engine, another name."""
