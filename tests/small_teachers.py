"""Small models of each family's own code, with random weights, where the files of teachers are sought, for a while.

All else of such a teacher, its elements, heads and tasks included, is that of the published one.
"""

import functools
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import aimnet2_artifacts
import fairchem_checkpoints
import mace_models
import orb_checkpoints
import sevennet_checkpoints
import torch
from ase.data import atomic_numbers

from zoo.files import sha256_file
from zoo.hub.catalogue import entries
from zoo.teachers import aimnet2, fairchem, family_of, mace, weights_of
from zoo.teachers.weights import Record, record_path, weights_path

KINDS = {  # family -> teachers whose small models differ in more than their file
    "sevennet": ("sevennet-mf-ompa/mpa-teacher", "sevennet-omni/omol25-low-teacher"),
    "mace": (
        "mace-off23-small/teacher",
        "mace-off23-medium/teacher",
        "mace-mp-0-large/teacher",
        "mace-mp-0b-small/teacher",
        "mace-mpa-0-medium/teacher",
        "mace-mh-1/omat-pbe-teacher",
        "mace-mh-1/omol-teacher",
    ),
    "fairchem": tuple(fairchem_checkpoints.KINDS),
    "orb": (
        "orb-v3-conservative-20-omat/teacher",
        "orb-v3-conservative-inf-omat/teacher",
        "orb-v3-conservative-omol/teacher",
        "orb-v3-direct-20-omat/teacher",
        "orb-v3-direct-inf-omat/teacher",
        "orb-v3-direct-omol/teacher",
    ),
    "aimnet2": ("aimnet2/teacher", "aimnet2-nse/teacher", "aimnet2-rxn/teacher"),
}

_OF_MACE = {  # how a name begins -> kind of ``mace_models``; the first that fits
    "mace-off23-small/": "scalars",
    "mace-off": "vectors",
    "mace-mp-0-small/": "scalars",
    "mace-mp-0-medium/": "vectors",
    "mace-mp-0-large/": "tensors",
    "mace-mp-0b-": "repulsion",
    "mace-mh-1/": "heads",
    "mace-": "density",
}
_STRENGTHS = {  # kind of ``mace_models`` -> what makes forces of about 1 eV/Å of its random weights
    "scalars": 50.0,
    "vectors": 100.0,
    "tensors": 5000.0,
    "repulsion": 100.0,
    "density": 200.0,
    "heads": 20000.0,
}
_FEATURES_OF_FAIRCHEM = 8
_SCALE_OF_SEVENNET = 20.0  # eV: forces are of about 1 eV/Å
_TIMES_OF_AIMNET2 = 20.0  # its last layer: forces are of about 1 eV/Å


@dataclass(frozen=True)
class _Small:
    """What a file holds, and how many channels of features its teacher has, where that is not what is published."""

    content: bytes
    features: int = 0


@contextmanager
def small_weights(*names: str) -> Iterator[Path]:
    """A cache of its own, in which each of these teachers is a small model; its folder.

    The package of their family must be installed. Raises KeyError for a teacher that no small model stands for.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as changes:
        changes.enter_context(mock.patch.dict(os.environ, ZOO_CACHE=folder))
        for name in names:
            family = family_of(name)
            assert family is not None
            _BUILDERS[family.key](name, changes)
        yield Path(folder)


def _sevennet(name: str, changes: ExitStack) -> None:
    _record(name, _write(name, _small_sevennet(name).content))


def _mace(name: str, changes: ExitStack) -> None:
    small = _small_mace(name)
    path, known = _write(name, small.content), mace._MODELS[name]
    file = replace(known.weights, digest=f"sha256:{sha256_file(path)}", size=len(small.content))
    trusted = replace(known, weights=file, channels=small.features)
    changes.enter_context(mock.patch.dict(mace._MODELS, {name: trusted}))


def _fairchem(name: str, changes: ExitStack) -> None:
    changes.enter_context(mock.patch.object(fairchem, "_FEATURES", _FEATURES_OF_FAIRCHEM))
    _record(name, _write(name, _small_fairchem(name).content))


def _orb(name: str, changes: ExitStack) -> None:
    pretrained = changes.enter_context(orb_checkpoints.small_architectures())
    _record(name, _write(name, _small_orb(pretrained, name).content))


def _aimnet2(name: str, changes: ExitStack) -> None:
    path = _write(name, _small_aimnet2(name).content)
    trusted = replace(aimnet2._MODELS[name], sha256=sha256_file(path))
    changes.enter_context(mock.patch.dict(aimnet2._MODELS, {name: trusted}))


_BUILDERS: dict[str, Callable[[str, ExitStack], None]] = {
    "sevennet": _sevennet,
    "mace": _mace,
    "fairchem": _fairchem,
    "orb": _orb,
    "aimnet2": _aimnet2,
}


# --- files, each made once in a process ----------------------------------------------------------------


@functools.cache
def _small_sevennet(name: str) -> _Small:
    """With all modalities of the file that the teacher is a part of, of which each has energies of atoms of its own."""
    family = name.partition("/")[0]
    modals = {"sevennet-mf-ompa": ("mpa", "omat24")}.get(family, ("mpa", "matpes_r2scan", "omol25_low"))
    shifts = {}
    for place, one in enumerate(modals, 1):
        shifts[one] = [0.0] * 119
        for number in _numbers(f"{family}/{one.replace('_', '-')}-teacher"):
            shifts[one][number] = -0.5 * place * number
    several = sevennet_checkpoints.modal(shifts, use_modal_node_embedding=True)
    shape = {"channel": 128, "irreps_manual": ["128x0e", "128x0e+4x1o", "128x0e"], "scale": _SCALE_OF_SEVENNET}
    config = sevennet_checkpoints.config_of({number: number for number in range(119)}, **several, **shape)
    with tempfile.TemporaryDirectory() as folder:
        return _Small(sevennet_checkpoints.write_checkpoint(Path(folder) / "file", config).read_bytes())


@functools.cache
def _small_mace(name: str) -> _Small:
    kind = next(kind for start, kind in _OF_MACE.items() if name.startswith(start))
    more: dict[str, Any] = {"strength": _STRENGTHS[kind]}
    if kind == "heads":  # of which each may be of fewer elements than the file
        of_file = [one for one in mace.names() if one.startswith("mace-mh-1/")]
        more["heads"] = [mace._MODELS[one].head for one in of_file]
        name = max(of_file, key=lambda one: len(_numbers(one)))
    model = mace_models.random_model(kind, numbers=_numbers(name), **more)
    with tempfile.TemporaryDirectory() as folder:
        content = mace_models.save(model, Path(folder) / "file").read_bytes()
    return _Small(content, model.products[-1].linear.irreps_out.count("0e"))


@functools.cache
def _small_fairchem(name: str) -> _Small:
    with _seeded():
        return _saved(fairchem_checkpoints.checkpoint(name, neighbors=30 if "direct" in name else 300))


@functools.cache
def _small_orb(pretrained: Any, name: str) -> _Small:
    with _seeded():
        return _saved(orb_checkpoints.random_model(pretrained, name).state_dict())


@functools.cache
def _small_aimnet2(name: str) -> _Small:
    with _seeded():
        content = aimnet2_artifacts.artifact(name, _numbers(name))
    content["state_dict"]["outputs.energy_mlp.mlp.2.weight"] *= _TIMES_OF_AIMNET2
    return _saved(content)


def _numbers(name: str) -> list[int]:
    """The elements that the catalogue says."""
    return [atomic_numbers[symbol] for symbol in entries()[name].elements]


@contextmanager
def _seeded() -> Iterator[None]:
    """The same numbers each time, whatever was drawn before; what packages warn of as they build is not shown."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(11)
        yield


def _saved(content: Any) -> _Small:
    stream = io.BytesIO()
    torch.save(content, stream)
    return _Small(stream.getvalue())


def _write(name: str, content: bytes) -> Path:
    file = weights_of(name)
    assert file is not None
    path = weights_path(name, file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _record(name: str, path: Path) -> None:
    """As if the file had been fetched."""
    file = weights_of(name)
    assert file is not None
    record = Record(url=file.url, digest=f"sha256:{sha256_file(path)}", size=path.stat().st_size)
    record_path(path).write_text(record.model_dump_json(), encoding="utf-8")
