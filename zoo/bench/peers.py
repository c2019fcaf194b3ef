"""Other packages' models, with random weights or their own, where they are installed: none of them is a dependency.

What is missing, does not import or cannot be made is a sentence, not an error: these packages change, and raise what
they like.
"""

import importlib
import importlib.metadata
import importlib.util
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers

from zoo.bench.runners import Absent, Runner, ask_calculator
from zoo.evaluate.speed import Call
from zoo.students import PaiNNConfig

SEED = 0  # of random weights
_ALL_NEIGHBORS = 500  # of an atom: more than there are, for the others leave none out


@dataclass(frozen=True)
class Wanted:
    """What a peer should be like to be comparable."""

    size: PaiNNConfig | None  # of a PaiNN; None where the engine is none
    elements: tuple[str, ...]  # symbols
    dtype: str
    device: str  # of PyTorch


@dataclass(frozen=True)
class _Peer:
    make: Callable[[Wanted], Runner]
    package: str  # what must import
    requirement: str  # what pip installs
    sized: bool = False  # whether it is a PaiNN of the engine's size

    @property
    def distribution(self) -> str:
        return self.requirement.partition("<")[0]


class _CannotError(Exception):
    """Why a peer that is installed is not measured."""


def peer_names() -> tuple[str, ...]:
    """What can be asked for."""
    return tuple(_PEERS)


def peer_versions() -> dict[str, str]:
    """Of the packages of those that are installed."""
    found = {}
    for name in sorted({peer.distribution for peer in _PEERS.values()}):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def peer_runner(name: str, wanted: Wanted) -> Runner | Absent:
    """A peer, ready to be asked, or why there is none."""
    peer = _PEERS[name]
    try:
        with _quietly():
            importlib.import_module(peer.package)  # lazy: an optional package
    except ModuleNotFoundError as error:
        found = error.name != peer.package.partition(".")[0]
        missing = f"it needs {error.name}" if found else "it is not installed"
        return Absent(name, f"{missing}; run: pip install {shlex.quote(peer.requirement)}")
    except Exception as error:  # whatever another package raises
        return Absent(name, f"{peer.package} does not import: {_line(error)}")
    if peer.sized and wanted.size is None:
        return Absent(name, "the engine is no PaiNN, so there is none of its size")
    try:
        with _quietly(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return peer.make(wanted)
    except Exception as error:  # as above
        return Absent(name, _line(error))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what other packages have to say while they are made."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield


def _line(error: Exception) -> str:
    """In one line, without the places of files that it may name."""
    text = re.sub(r" \(/[^)]*\)", "", " ".join(str(error).split()))
    return text if isinstance(error, _CannotError) else f"{type(error).__name__}: {text}"


def _module(name: str) -> Any:
    return importlib.import_module(name)  # lazy: an optional package


def _float32_alone(wanted: Wanted) -> None:
    if wanted.dtype != "float32":
        raise _CannotError(f"it is measured in float32 alone, not in {wanted.dtype}")


def _graph_pes(wanted: Wanted) -> Runner:
    """PaiNN of graph-pes, its calculator, and its model on graphs that are there already."""
    _float32_alone(wanted)
    size = _size(wanted)
    model = _module("graph_pes.models").PaiNN(
        channels=size.channels, radial_features=size.radials, layers=size.layers, cutoff=size.cutoff
    )
    model = model.to(wanted.device).eval().requires_grad_(False)
    graphs = _module("graph_pes.atomic_graph")
    calculator = _module("graph_pes.utils.calculator").GraphPESCalculator(model)

    def alone(structures: Sequence[Atoms]) -> Call:
        graph = graphs.to_batch([graphs.AtomicGraph.from_ase(atoms, size.cutoff) for atoms in structures])
        graph = graph.to(model.device)
        return lambda: model.predict(graph, ["energy", "forces"])

    def batch(structures: Sequence[Atoms]) -> Call:
        return lambda: calculator.calculate_all(structures, ["energy", "forces"], batch_size=len(structures))

    return Runner("graph-pes-painn", "peer", {"ase": ask_calculator(calculator), "potential": alone, "batch": batch})


def _schnetpack(wanted: Wanted) -> Runner:
    """PaiNN of schnetpack, with its fastest neighbour list, through its own calculator."""
    _float32_alone(wanted)
    size, spk = _size(wanted), _module("schnetpack")
    painn = _module("schnetpack.representation").PaiNN(
        n_atom_basis=size.channels,
        n_interactions=size.layers,
        radial_basis=_module("schnetpack.nn").BesselRBF(n_rbf=size.radials, cutoff=size.cutoff),
        cutoff_fn=_module("schnetpack.nn").CosineCutoff(size.cutoff),
    )
    atomistic = _module("schnetpack.atomistic")
    model = spk.model.NeuralNetworkPotential(
        representation=painn,
        input_modules=[atomistic.PairwiseDistances()],
        output_modules=[atomistic.Atomwise(n_in=size.channels, output_key="energy"), atomistic.Forces()],
    )
    calculator = _module("schnetpack.interfaces").SpkCalculator(
        model,
        neighbor_list=_module("schnetpack.transform").MatScipyNeighborList(cutoff=size.cutoff),
        device=wanted.device,
        energy_unit="eV",
        position_unit="Ang",
        dtype=torch.float32,
    )
    return Runner("schnetpack-painn", "peer", {"ase": ask_calculator(calculator)})


def _fairchem(wanted: Wanted) -> Runner:
    """PaiNN of fairchem 1 with its own graphs, forces as gradients; it has no calculator without a checkpoint."""
    _float32_alone(wanted)
    size = _size(wanted)
    model = _module("fairchem.core.models.painn.painn").PaiNN(
        hidden_channels=size.channels,
        num_layers=size.layers,
        num_rbf=size.radials,
        cutoff=size.cutoff,
        max_neighbors=_ALL_NEIGHBORS,
        direct_forces=False,
        rbf={"name": "spherical_bessel"},
    )
    model = model.to(wanted.device).eval().requires_grad_(False)
    to_graph = _module("fairchem.core.preprocessing").AtomsToGraphs(r_edges=False, r_fixed=False, r_pbc=True)
    join = _module("torch_geometric.data").Batch.from_data_list

    def batch(structures: Sequence[Atoms]) -> Call:
        def ask() -> np.ndarray:
            found = model(join([to_graph.convert(atoms) for atoms in structures]).to(wanted.device))
            forces: np.ndarray = found["forces"].detach().cpu().numpy()
            return forces

        return ask

    return Runner("fairchem-painn", "peer", {"ase": batch, "batch": batch})


def _sevennet(model: str) -> Callable[[Wanted], Runner]:
    def make(wanted: Wanted) -> Runner:
        """SevenNet through its own calculator, with what it has of faster kernels on a GPU."""
        _float32_alone(wanted)
        flash = wanted.device != "cpu" and importlib.util.find_spec("flashTP_e3nn") is not None
        calculator = _module("sevenn.calculator").SevenNetCalculator(model, device=wanted.device, enable_flash=flash)
        return Runner(model, "peer", {"ase": ask_calculator(calculator)})

    return make


def _mace(name: str, channels: int, highest: int, cutoff: float) -> Callable[[Wanted], Runner]:
    """A MACE of the size of a MACE-OFF model (Kovács and others, JACS 2025, 147, 17598, table 1), random weights."""

    def make(wanted: Wanted) -> Runner:
        irreps, modules = _module("e3nn.o3").Irreps, _module("mace.modules")
        hidden = " + ".join(f"{channels}x{degree}{'eo'[degree % 2]}" for degree in range(highest + 1))
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(getattr(torch, wanted.dtype))  # MACE makes its weights in it
            model = modules.ScaleShiftMACE(
                r_max=cutoff,
                num_bessel=8,
                num_polynomial_cutoff=5,
                max_ell=3,
                interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
                interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
                num_interactions=2,
                num_elements=len(wanted.elements),
                hidden_irreps=irreps(hidden),
                MLP_irreps=irreps("16x0e"),
                gate=torch.nn.functional.silu,
                atomic_energies=np.zeros(len(wanted.elements)),
                avg_num_neighbors=20.0,
                atomic_numbers=sorted(atomic_numbers[symbol] for symbol in wanted.elements),
                correlation=3,
                radial_type="bessel",
                atomic_inter_scale=1.0,
                atomic_inter_shift=0.0,
            )
            calculator = _module("mace.calculators").MACECalculator(
                models=[model], device=wanted.device, default_dtype=wanted.dtype
            )
        finally:
            torch.set_default_dtype(before)
        return Runner(name, "peer", {"ase": ask_calculator(calculator)})

    return make


def _size(wanted: Wanted) -> PaiNNConfig:
    assert wanted.size is not None  # asked before
    return wanted.size


_PEERS = {
    "graph-pes-painn": _Peer(_graph_pes, "graph_pes.models", "graph-pes", sized=True),
    "schnetpack-painn": _Peer(_schnetpack, "schnetpack", "schnetpack", sized=True),
    "fairchem-painn": _Peer(_fairchem, "fairchem.core.models.painn", "fairchem-core<2", sized=True),
    "7net-0": _Peer(_sevennet("7net-0"), "sevenn", "sevenn"),
    "7net-l3i5": _Peer(_sevennet("7net-l3i5"), "sevenn", "sevenn"),
    "mace-off-small": _Peer(_mace("mace-off-small", 96, 0, 4.5), "mace", "mace-torch"),
    "mace-off-large": _Peer(_mace("mace-off-large", 192, 2, 5.0), "mace", "mace-torch"),
}
