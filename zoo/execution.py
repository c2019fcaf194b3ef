"""How an engine computes energies, forces and stress: by PyTorch, or by compiled code that agrees with it.

Compiled code counts only after it gave, on structures of the engine's own, what PyTorch gives with the same weights;
the verdict is kept beside the code. Where it cannot be made or does not agree, PyTorch goes on in its place. Everything
else, Hessians above all, is PyTorch's.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
from ase import Atoms

from zoo.config import Config, read_json, write_json
from zoo.derivatives import stress_of, sum_over_structures
from zoo.errors import CapabilityError, ConfigError, ZooWarning
from zoo.graph import Graph
from zoo.kernels import PaiNNKernel
from zoo.neighbors import build_graph
from zoo.potential import Potential, Prediction, given
from zoo.students import PaiNN
from zoo.units import MEV_PER_EV

Compile = bool | Literal["auto"]
# By type: how far energies of atoms and forces may differ, relative to the largest force, or to 1 eV and 1 eV/Å.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}


class Verdict(Config):
    """``verdicts/<digest>.json`` beside the compiled code: how far it was from PyTorch."""

    energy_meV: float  # of an atom
    force_meV_A: float
    agrees: bool


@dataclass(frozen=True)
class Compiled:
    """A potential's energies, forces and stress from compiled code."""

    kernel: PaiNNKernel
    potential: PaiNN

    def __reduce__(self) -> tuple[Callable[[PaiNN], "Compiled | None"], tuple[PaiNN]]:
        """To another process or as a copy goes the potential; the code is found, or compiled, there."""
        return _again, (self.potential,)

    @property
    def fits(self) -> bool:
        """Whether the potential is still where and of the type that it was compiled for."""
        return self.potential.dtype == self.kernel.dtype and self.potential.device.type == "cpu"

    def predict(self, graph: Graph, *, stress: bool = False) -> Prediction:
        """What ``Potential.predict`` says of these."""
        energies, forces, virial = self.kernel(graph)
        atomic = energies.double() + self.potential.reference_energies(graph.numbers)
        energy = sum_over_structures(atomic, graph)
        return Prediction(energy, atomic, forces=forces, stress=stress_of(virial, graph) if stress else None)


def _again(potential: PaiNN) -> Compiled | None:
    """What agreed where it comes from; None where there is no such code here."""
    try:
        return Compiled(PaiNNKernel(potential), potential)
    except CapabilityError:
        return None


def wanted(compile: Compile) -> Compile:
    """What was asked for, unless ZOO_COMPILE is ``never``. Raises ConfigError for anything but a choice."""
    if compile not in (True, False, "auto"):
        raise ConfigError(f"compile={compile!r}; expected True, False or 'auto'")
    told = os.environ.get("ZOO_COMPILE") or "auto"
    if told not in ("auto", "never"):
        raise ConfigError(f"ZOO_COMPILE is {told!r}; expected auto or never")
    return False if told == "never" else compile


def compiled(potential: Potential, compile: Compile, structures: Sequence[Atoms]) -> Compiled | None:
    """Compiled code for a potential, that agreed with PyTorch on ``structures``; None where PyTorch is to do it all.

    A ZooWarning says where there is none that one could expect.
    """
    if wanted(compile) is False:
        return None
    if not isinstance(potential, PaiNN) or potential.device.type != "cpu":
        if compile is True:
            _warn(f"there is no compiled code for a {type(potential).__name__} on {potential.device}")
        return None
    try:
        found = Compiled(PaiNNKernel(potential), potential)
    except CapabilityError as error:
        _warn(str(error).partition(";")[0])
        return None
    verdict = _verdict(found, structures)
    if not verdict.agrees:
        _warn(f"compiled code differs by {verdict.force_meV_A:.2g} meV/Å from PyTorch")
        return None
    return found


def _verdict(found: Compiled, structures: Sequence[Atoms]) -> Verdict:
    """The one that is kept, or a new one, which is kept where the cache can be written to."""
    code = found.kernel.compiled
    assert code.folder is not None  # there is a kernel
    path = code.folder / "verdicts" / f"{_key(found.potential, code.name)}.json"
    with suppress(ConfigError):  # none, or not whole
        return read_json(Verdict, path)
    verdict = try_out(found, structures)
    with suppress(OSError):  # a cache that cannot be written to
        write_json(path, verdict)
    return verdict


def _key(potential: PaiNN, library: str) -> str:
    """A digest of all that a verdict is of: the potential, the compiled code, and PyTorch."""
    content = hashlib.sha256(f"{potential.config.model_dump_json()} {library} {torch.__version__}".encode())
    for name, tensor in sorted(potential.state_dict().items()):
        content.update(f"{name} {tensor.dtype}".encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()[:32]


def try_out(found: Compiled, structures: Sequence[Atoms]) -> Verdict:
    """The largest differences of compiled code from PyTorch on these structures."""
    potential = found.potential
    graph = build_graph(list(structures), potential.cutoff, dtype=potential.dtype)
    ours, theirs = found.predict(graph), potential.predict(graph)
    energy = float((given(ours.atomic_energies) - given(theirs.atomic_energies)).abs().max())
    force = float((given(ours.forces) - given(theirs.forces)).abs().max())
    most = TOLERANCES[potential.dtype] * max(float(given(theirs.forces).abs().max()), 1.0)
    agrees = energy <= most and force <= most  # not so for a NaN
    return Verdict(energy_meV=energy * MEV_PER_EV, force_meV_A=force * MEV_PER_EV, agrees=agrees)


def _warn(reason: str) -> None:
    warnings.warn(
        f"{reason}; PyTorch does the same, several times slower (compile=False, or ZOO_COMPILE=never, asks no more)",
        ZooWarning,
        stacklevel=4,
    )
