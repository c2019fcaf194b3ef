"""From a name to an engine."""

from pathlib import Path

import torch

from zoo.artifact import CONFIG
from zoo.covering import Covering
from zoo.engine import Engine, Provenance, resolve_dtype
from zoo.errors import ConfigError, UnknownNameError
from zoo.execution import Compile, compiled, wanted
from zoo.hub.catalogue import entries
from zoo.inputs import resolve_device
from zoo.locate import fetch, locate, open_hub, parse, warn_without_folder
from zoo.naming import FORMS, EngineName, default_namespace
from zoo.teachers import FINE_TUNED, absent, is_own, load_teacher, own_teacher, own_teachers, teacher_names


def load(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    compile: Compile = "auto",
    check_domain: bool = True,
    hub: str | Path | None = None,
    revision: str | None = None,
    namespace: str | None = None,
) -> Engine:
    """The engine of that name, verified and ready.

    ``name`` is ``family/engine[@revision]``, ``hf://owner/repo[@revision]`` or a path to a model folder. ``hub`` is a
    URL or a folder, by default what ZOO_HUB names, else huggingface.co; ``namespace`` is by default what ZOO_NAMESPACE
    names, else mlff-zoo. A version (``@v1``), a commit and a folder are read without a request where they were fetched
    before; a name without revision asks for the newest version, and takes the newest of those fetched, with a
    ZooWarning, where the hub does not answer. Energies, forces and stress come from compiled code that agreed with
    PyTorch: a PaiNN's on a CPU is compiled in seconds, once a machine; that of the other students takes a minute or
    more, is made with ``compile=True`` or by ``zoo warm``, and is found in the cache from then on. On a GPU operations
    are recorded and replayed, compiled or not. With ``compile=False`` or ZOO_COMPILE=never all is PyTorch's, and with
    ``compile=True`` a ZooWarning says where there is no such code.
    Raises UnknownNameError, NotReleasedError, HubError, AccessError, IntegrityError, ConfigError,
    MissingPackageError.
    """
    wanted(compile)
    place, real = resolve_device(device), resolve_dtype(dtype)
    found, lookup = parse(name, revision), Covering(hub, namespace)
    if isinstance(found, EngineName) and _is_teacher(found, hub):
        return _teacher(found, place, real, check_domain, compile, lookup)
    if isinstance(found, Path):
        if not found.is_dir():
            raise UnknownNameError(f"there is no folder {found}; expected {FORMS}")
        if not (found / CONFIG).exists() and (found / "model" / CONFIG).exists():
            raise UnknownNameError(f"{found} is no model folder; did you mean {found / 'model'}?")
        return Engine.read(found, device=place, dtype=real, compile=compile, check_domain=check_domain, lookup=lookup)
    fetched = fetch(locate(found, open_hub(hub), default_namespace(namespace)))
    return Engine.read(
        fetched.folder,
        device=place,
        dtype=real,
        compile=compile,
        check_domain=check_domain,
        source=fetched.source,
        revision=fetched.resolved.tag,
        commit=fetched.resolved.commit,
        lookup=lookup,
    )


def names(hub: str | Path | None = None, *, namespace: str | None = None) -> list[str]:
    """Every name that ``load`` knows: the catalogue's, teachers of one's own, and those of a namespace on a hub.

    Where the hub does not answer, a ZooWarning says so, and those fetched before are named. Raises ConfigError.
    """
    target = open_hub(hub)
    warn_without_folder(target)
    found = target.engines(default_namespace(namespace))
    own = (teacher.name for teacher in own_teachers())
    return sorted({*entries(), *own, *(listed.name for listed in found if listed.tag)})


def _is_teacher(found: EngineName, hub: str | Path | None) -> bool:
    """One that was made or added here is one; else, and where a hub or a version is asked for, it is an engine."""
    if found.name in FINE_TUNED or is_own(found.name):
        known = absent(found.name) is None if found.name in FINE_TUNED else own_teacher(found.name) is not None
        return hub is None and found.revision is None and known
    return found.name in teacher_names()


def _teacher(
    found: EngineName, device: torch.device, dtype: torch.dtype, check_domain: bool, compile: Compile, lookup: Covering
) -> Engine:
    if found.revision is not None:
        raise ConfigError(
            f"{found.name} comes with an installed package, or is converted, and has no revision {found.revision}; "
            "leave it out"
        )
    teacher = load_teacher(found.name, dtype=dtype, device=device)
    provenance = Provenance(
        name=teacher.name,
        source=teacher.package,
        licence=teacher.licence_weights,
        level_of_theory=teacher.level_of_theory,
    )
    code = compiled(teacher.potential, compile, [])  # none of a teacher: says so where it was asked for
    return Engine(teacher.potential, provenance, check_domain=check_domain, compiled=code, lookup=lookup)
