"""How an engine computes energies, forces and stress: by PyTorch, or by compiled code that agrees with it.

A PaiNN on a CPU has a kernel of its own, compiled in seconds; what PyTorch compiles of the other students takes a
minute or more, and so is made only when it is asked for. On a GPU, compiled or not, operations are recorded and
replayed.

Compiled code counts only after it gave, on structures of the engine's own, what PyTorch gives with the same weights;
the verdict is kept beside the code. Where it cannot be made or does not agree, PyTorch goes on in its place. Everything
else, Hessians above all, is PyTorch's.
"""

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from ase import Atoms
from torch import Tensor

from zoo.captured import StudentCode, can_be_captured, compiled_student, seeks_edges, uncompiled
from zoo.config import Config, read_json, write_json
from zoo.cuda_graphs import Replay
from zoo.derivatives import stress_of, sum_over_structures
from zoo.errors import CapabilityError, ConfigError, ZooWarning
from zoo.graph import Graph
from zoo.kernels import PaiNNKernel
from zoo.native import read_sources
from zoo.neighbors import build_graph, within
from zoo.potential import Potential, Prediction, given
from zoo.students import PaiNN, Student
from zoo.units import MEV_PER_EV

Compile = bool | Literal["auto"]
Code = PaiNNKernel | StudentCode | Replay  # of a graph: energies of atoms, forces, virial
# By type: how far energies of atoms and forces may differ, relative to the largest force, or to 1 eV and 1 eV/Å.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}
# Whose change may make a verdict another: both sides of it, and how they are compared.
_SOURCES = (
    *("derivatives.py", "execution.py", "graph.py", "ops.py", "potential.py"),
    *("kernels/*.py", "students/*.py", "captured.py"),
)


class Verdict(Config):
    """``verdicts/<digest>.json`` beside the compiled code: how far it was from PyTorch."""

    energy_meV: float  # of an atom
    force_meV_A: float
    virial_meV: float  # of a crystal, for each of its atoms
    agrees: bool


@dataclass(frozen=True)
class Compiled:
    """A potential's energies, forces and stress from code that was compiled, or recorded, for it."""

    code: Code
    potential: Potential
    takes: ClassVar[torch.dtype] = torch.float64  # the type of graphs to ask it with: edges are measured in it

    def __reduce__(self) -> tuple[Callable[[Potential], "Compiled | None"], tuple[Potential]]:
        """To another process or as a copy goes the potential; the code is found, or compiled in seconds, there."""
        return _again, (self.potential,)

    @property
    def fits(self) -> bool:
        """Whether the potential is still where and of the type that it was compiled for."""
        weight = self._weight
        return weight.dtype == self.code.dtype and weight.device == self._where

    @cached_property
    def _weight(self) -> Tensor:
        """One of the potential's, which moves with it; to seek it anew at each step takes longer than to look at it."""
        return next(tensor for tensor in self.potential.parameters() if tensor.is_floating_point())

    @cached_property
    def _where(self) -> torch.device:
        return torch.device("cpu") if isinstance(self.code, PaiNNKernel) else self.code.device

    @property
    def title(self) -> str:
        """What runs, in a word, for people."""
        inner = self.code.code if isinstance(self.code, Replay) else self.code
        made = isinstance(inner, PaiNNKernel) or inner.path is not None
        return "compiled" if made else "recorded" if isinstance(self.code, Replay) else "PyTorch"

    @property
    def follows(self) -> bool:
        """Whether there is a faster way for atoms that move while their neighbours stay, ``follow``."""
        return self.fits and isinstance(self.code, PaiNNKernel | Replay) and self.potential.traits.smoothness >= 0

    def predict(self, graph: Graph, *, stress: bool = False) -> Prediction:
        """What ``Potential.predict`` says of these."""
        return self._prediction(graph, *self.code(graph), stress=stress)

    def follow(self, edges: Graph) -> Callable[..., tuple[Prediction, float]]:
        """A function of positions (atoms, 3) Å in main memory, and of ``stress``, while all else stays as in ``edges``.

        Edges beyond the cutoff do not count. It gives a prediction in main memory and the length of the shortest edge,
        Å; the potential's own from when it no longer ``fits``. Only where it ``follows``.
        """
        code = self.code
        assert not isinstance(code, StudentCode)
        answer, frame = code.follow(edges), edges.to("cpu", self.potential.dtype)
        references = self.potential.reference_energies(frame.numbers.to(self.potential.device)).cpu()

        def follower(positions: Tensor, *, stress: bool) -> tuple[Prediction, float]:
            if not self.fits:
                return self._by_the_potential(edges.with_geometry(positions.to(edges.positions), edges.cells), stress)
            found = answer(positions)
            parts = (found.energies, found.forces, found.virial)
            return self._prediction(frame, *parts, references, stress=stress), found.shortest

        return follower

    def _by_the_potential(self, edges: Graph, stress: bool) -> tuple[Prediction, float]:
        graph, shortest = within(edges, self.potential.cutoff)
        graph = graph.to(self.potential.device, self.potential.dtype)
        return self.potential.predict(graph, stress=stress).cpu(), shortest

    def _prediction(
        self,
        graph: Graph,
        energies: Tensor,
        forces: Tensor,
        virial: Tensor,
        references: Tensor | None = None,
        *,
        stress: bool,
    ) -> Prediction:
        if references is None:
            references = self.potential.reference_energies(graph.numbers)
        atomic = energies + references  # in float64, as the references are
        # alone by the same additions as among others, and so to the same bits, but without a scatter
        energy = atomic.cumsum(0)[-1:] if graph.num_structures == 1 else sum_over_structures(atomic, graph)
        return Prediction(energy, atomic, forces=forces, stress=stress_of(virial, graph) if stress else None)


def _again(potential: Potential) -> Compiled | None:
    """What agreed where it comes from; None where there is no such code here."""
    try:
        code = _code(potential, build=False)
    except CapabilityError:
        return None
    return None if code is None else Compiled(_recorded(code, potential), potential)


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

    With ``auto`` nothing is compiled that takes longer than seconds. A ZooWarning says where there is none that one
    could expect.
    """
    asked = wanted(compile)
    if asked is False:
        if compile is True:
            warnings.warn("ZOO_COMPILE is never; unset it for compile=True to compile", ZooWarning, stacklevel=3)
        return None
    try:
        found, _ = _agreed(potential, structures, build=asked is True)
    except CapabilityError as error:
        if asked is True or can_be_captured(potential):
            _warn(str(error).partition(";")[0])
        return None
    return found


def warm(potential: Potential, structures: Sequence[Atoms]) -> str:
    """Compiles whatever there is for a potential, tries it on ``structures``, and says in a sentence what is ready."""
    name = f"{type(potential).__name__} in {str(potential.dtype).removeprefix('torch.')} on {potential.device}"
    if wanted(True) is False:
        return f"PyTorch runs {name}: ZOO_COMPILE is never"
    start = time.perf_counter()
    try:
        _, verdict = _agreed(potential, structures, build=True)
    except CapabilityError as error:
        return f"PyTorch runs {name}: {str(error).partition(';')[0]}"
    if verdict is None:
        return f"PyTorch's operations for {name} are recorded when they are needed"
    seconds, off = time.perf_counter() - start, verdict.force_meV_A
    return f"compiled code for {name} is ready after {seconds:.1f} s, within {off:.2g} meV/Å of PyTorch"


def _agreed(
    potential: Potential, structures: Sequence[Atoms], *, build: bool
) -> tuple[Compiled | None, Verdict | None]:
    """Code and the verdict on it; None where nothing is to be compiled. Raises CapabilityError for a reason."""
    code = _code(potential, build=build)
    if code is None:
        return None, None
    verdict = _verdict(Compiled(code, potential), structures)
    if verdict is not None and not verdict.agrees:
        raise CapabilityError(
            f"compiled code differs by {verdict.energy_meV:.2g} meV/atom, {verdict.virial_meV:.2g} meV/atom of virial "
            f"and {verdict.force_meV_A:.2g} meV/Å from PyTorch"
        )
    return Compiled(_recorded(code, potential), potential), verdict


def _code(potential: Potential, *, build: bool) -> PaiNNKernel | StudentCode | None:
    """The kernel, or what PyTorch compiled; on a GPU, without either, what is recorded all the same.

    Raises CapabilityError.
    """
    on_gpu = potential.device.type == "cuda"
    if isinstance(potential, PaiNN) and not on_gpu:
        return PaiNNKernel(potential)
    can_be_recorded = on_gpu and can_be_captured(potential) and not seeks_edges(cast(Student, potential))
    try:
        code = compiled_student(potential, build=build)
    except CapabilityError as error:
        if not can_be_recorded:
            raise
        _warn(str(error).partition(";")[0])
        code = None
    return uncompiled(cast(Student, potential)) if code is None and can_be_recorded else code


def _recorded(code: PaiNNKernel | StudentCode, potential: Potential) -> Code:
    """On a GPU a recording, but for students whose edges are found anew each time."""
    if isinstance(code, PaiNNKernel) or code.device.type != "cuda" or seeks_edges(cast(Student, potential)):
        return code
    return Replay(code)


def _verdict(found: Compiled, structures: Sequence[Atoms]) -> Verdict | None:
    """The one that is kept, or a new one, which is kept where the cache can be written to; None of PyTorch's own."""
    folder, name = _place(found)
    if folder is None:
        return None
    path = folder / "verdicts" / f"{_key(found.potential, name)}.json"
    with suppress(ConfigError):  # none, or not whole
        return read_json(Verdict, path)
    verdict = try_out(found, structures)
    with suppress(OSError):  # a cache that cannot be written to
        write_json(path, verdict)
    return verdict


def _place(found: Compiled) -> tuple[Path | None, str]:
    """The folder of the compiled code, and the digest of its content."""
    if isinstance(found.code, PaiNNKernel):
        return found.code.compiled.folder, found.code.compiled.name
    path = found.code.path if isinstance(found.code, StudentCode) else None
    return (None, "") if path is None else (path.parent, path.stem)


def _key(potential: Potential, library: str) -> str:
    """A digest of all that a verdict is of: the potential, the compiled code, what compares them, and PyTorch."""
    config = cast(Student, potential).config.model_dump_json()
    content = hashlib.sha256(f"{config} {library} {torch.__version__} {TOLERANCES}".encode())
    for source in read_sources(*_SOURCES):
        content.update(source)
    for name, tensor in sorted(potential.state_dict().items()):
        content.update(f"{name} {tensor.dtype}".encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:32]


def try_out(found: Compiled, structures: Sequence[Atoms]) -> Verdict:
    """The largest differences of compiled code from PyTorch on these structures.

    Raises CapabilityError where they are not finite.
    """
    potential = found.potential
    graph = build_graph(list(structures), potential.cutoff, dtype=potential.dtype, device=potential.device)
    stress = potential.traits.stress
    ours, theirs = found.predict(graph, stress=stress), potential.predict(graph, stress=stress)
    energy = float((given(ours.atomic_energies) - given(theirs.atomic_energies)).abs().max())
    force = float((given(ours.forces) - given(theirs.forces)).abs().max())
    virial = _virial_difference(ours, theirs, graph) if stress else 0.0
    differences = (energy, force, virial)
    if not all(math.isfinite(one) for one in differences):
        raise CapabilityError("compiled code gives numbers that are not finite; let PyTorch run it")
    most = TOLERANCES[potential.dtype] * max(float(given(theirs.forces).abs().max()), 1.0)
    return Verdict(
        energy_meV=energy * MEV_PER_EV,
        force_meV_A=force * MEV_PER_EV,
        virial_meV=virial * MEV_PER_EV,
        agrees=all(one <= most for one in differences),
    )


def _virial_difference(ours: Prediction, theirs: Prediction, graph: Graph) -> float:
    """The largest, eV for each atom of a crystal; 0 without crystals."""
    solid = graph.periodic.all(dim=1)  # (structures,)
    of_an_atom = torch.linalg.det(graph.cells.double()).abs() / graph.atom_counts  # (structures,) Å³
    difference = (given(ours.stress).double() - given(theirs.stress).double()).abs().amax(dim=(1, 2))
    return float((difference * of_an_atom)[solid].max()) if bool(solid.any()) else 0.0


def _warn(reason: str) -> None:
    warnings.warn(
        f"{reason}; PyTorch does the same, several times slower (compile=False, or ZOO_COMPILE=never, asks no more)",
        ZooWarning,
        stacklevel=4,
    )
