"""Orb v3 and OrbMol, the foundation models of the package ``orb-models`` (Rhodes et al., arXiv 2504.06231).

Edges are described by the components of spherical harmonics, and what they pass through is not equivariant: energy,
forces and node features depend a little on how a structure is turned. The energy is the number of atoms times what a
network makes of the mean over their features; it is no sum over atoms, and two molecules far apart are not two
molecules. Node features are not given, because they turn with the structure in no known way.

``-20-`` models see the nearest 20 neighbours of an atom, so that energy and forces jump as neighbours change places;
``-inf-`` and ``-omol`` models see 120, more than there are within 6 Å in all but the densest matter (diamond has 158),
where a warning says so. Direct models predict forces, of which the mean is removed, and for a molecule the torque, and,
but for OrbMol, the stress. OrbMol is asked for neutral structures with one unpaired electron where the number of
electrons is odd.

Weights are dictionaries of tensors, read without running anything. No published digest of them was found.
"""

import importlib.metadata
import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.graph import Graph
from zoo.ops import scatter_sum
from zoo.potential import AtomOutputs, Potential, Traits
from zoo.teachers.base import Teacher
from zoo.teachers.dtypes import default_dtype
from zoo.teachers.inputs import check_elements, lowest_multiplicities, nearest, warn_of_hidden
from zoo.teachers.packages import importing
from zoo.teachers.pickles import read_pickle, unreadable
from zoo.teachers.theories import OMAT, OMOL
from zoo.teachers.weights import Weights, find_weights

_CUTOFF = 6.0  # Å
_ALL = 120  # neighbours, which orb-models takes for unlimited
_KINDS = 118  # rows of a one-hot of atomic numbers
_PLACES = (0, 5, 4, 5, 1, 3, 4, 3, 2)  # of the elements of a stress in Voigt's order
_ADDRESS = "https://orbitalmaterials-public-models.s3.us-west-1.amazonaws.com/forcefields"
_CITATIONS = {
    "v3": "B. Rhodes, S. Vandenhaute, V. Šimkus, J. Gin, J. Godwin, T. Duignan, M. Neumann, arXiv:2504.06231 (2025)",
    "omol": "OrbMol, Orbital Materials (2025), architecture of arXiv:2504.06231, data of arXiv:2505.08762",
}
_INORGANIC = (*range(1, 84), *range(89, 95))  # H to Bi and Ac to Pu: OMat24, MPtrj and Alexandria
_MOLECULAR = tuple(range(1, 84))  # H to Bi: OMol25


@dataclass(frozen=True)
class _Data:
    """What a model was trained on."""

    level_of_theory: str
    elements: tuple[int, ...]


_DATA = {
    "omat": _Data(OMAT, _INORGANIC),
    "mpa": _Data("PBE and PBE+U, Materials Project (MPtrj) and Alexandria", _INORGANIC),  # all of it, not sAlex
    "omol": _Data(OMOL, _MOLECULAR),
}


@dataclass(frozen=True)
class _Model:
    """One set of weights."""

    direct: bool
    neighbors: int
    data: str
    file: str  # beneath the address

    @property
    def charged(self) -> bool:
        """Whether the network is told charge and spin."""
        return self.data == "omol"


def _table() -> dict[str, _Model]:
    models = {}
    for kind in ("conservative", "direct"):
        for data in ("omat", "mpa"):
            for reach, neighbors in (("20", 20), ("inf", _ALL)):
                stem = f"orb-v3-{kind}-{reach}-{data}"
                models[f"{stem}/teacher"] = _Model(kind == "direct", neighbors, data, f"orb-v3/{stem}-20250404.ckpt")
        stem = f"orb-v3-{kind}-omol"
        models[f"{stem}/teacher"] = _Model(kind == "direct", _ALL, "omol", f"{stem}-20250820.ckpt")
    return models


_MODELS = _table()


@dataclass(frozen=True)
class _Batch:
    """The parts of orb-models' batches that its layers read."""

    senders: Tensor  # (edges,) int64
    receivers: Tensor  # (edges,) int64
    n_node: Tensor  # (structures,) int64
    n_edge: Tensor  # (structures,) int64
    node_features: dict[str, Tensor]
    edge_features: dict[str, Tensor]
    system_features: dict[str, Tensor]

    @property
    def positions(self) -> Tensor:
        return self.node_features["positions"]


class Orb(Potential):
    """An Orb model as a zoo potential: its own layers up to energy or forces, zoo's derivatives of them.

    The envelopes of messages and of the short-range repulsion have two continuous derivatives.
    """

    cutoff = _CUTOFF

    def __init__(self, model: Any, name: str, *, neighbors: int, elements: tuple[int, ...]) -> None:
        """``model`` is a regressor of orb-models, whose heads tell of which kind it is."""
        super().__init__()
        self.model = model.requires_grad_(False)
        self.name, self.neighbors, self.elements = name, neighbors, elements
        self.traits = _traits("forces" in model.heads, neighbors, model.model.conditioner is not None)

    def atomic_energies(self, graph: Graph) -> Tensor:
        """(atoms,) eV, equal shares of the energy of each structure."""
        return self.atomic_outputs(graph).energies

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        check_elements(graph, self.elements, self.name)
        near = nearest(graph, self.neighbors)
        if self.traits.smoothness >= 0:
            warn_of_hidden(graph, near, self.neighbors, self.name)
        batch = _batch_of(near)
        features = self.model.model(batch)["node_features"]  # (atoms, channels)
        with default_dtype(self.dtype):  # in which it raises whole numbers to powers
            repulsion = self.model.pair_repulsion_fn(batch)
        head = self.model.heads["energy"]
        mean = scatter_sum(features, graph.structure, graph.num_structures) / batch.n_node[:, None]
        share = head.normalizer.inverse(head.mlp(mean))[:, 0]  # (structures,) eV an atom
        share = share + repulsion["energy"] / batch.n_node
        forces, stress = None, None
        if not self.traits.conservative:
            forces = self.model.heads["forces"].predict(features, batch) + repulsion["forces"]
            if self.traits.stress:
                stress = _stress(self.model.heads["stress"].predict(features, batch), repulsion["stress"], graph.cells)
        return AtomOutputs(share.index_select(0, graph.structure), forces=forces, stress=stress)

    def reference_energies(self, numbers: Tensor) -> Tensor:
        """(atoms,) eV, float64: the constants that orb-models adds for each element."""
        constants: Tensor = self.model.heads["energy"].reference.linear.weight.reshape(-1)
        return constants.double()[numbers]

    def element_embeddings(self) -> Tensor:
        """(elements, channels) What the network begins with, in the order of ``elements``."""
        table: Tensor = self.model.model.atom_emb.embeddings.weight
        return table[list(self.elements)]


def _stress(learned: Tensor, repulsion: Tensor, cells: Tensor) -> Tensor:
    """(structures, 3, 3) eV/Å³ of both parts (structures, 6); orb-models divides the second by a signed volume."""
    found = learned + repulsion * torch.linalg.det(cells).sign()[:, None]
    return torch.stack([found[:, place] for place in _PLACES], dim=1).reshape(-1, 3, 3)


def _batch_of(graph: Graph) -> _Batch:
    """A graph as orb-models' layers want it: neutral structures of the lowest spin."""
    vectors = graph.edge_vectors()
    spins = lowest_multiplicities(graph).to(vectors.dtype)
    kinds = torch.nn.functional.one_hot(graph.numbers, _KINDS).to(vectors.dtype)  # (atoms, kinds)
    of_edges = graph.structure[graph.centers]
    return _Batch(
        senders=graph.centers,
        receivers=graph.neighbors,
        n_node=graph.atom_counts,
        n_edge=scatter_sum(torch.ones_like(of_edges), of_edges, graph.num_structures),
        node_features={
            "positions": graph.positions,
            "atomic_numbers": graph.numbers,
            "atomic_numbers_embedding": kinds,
        },
        edge_features={"vectors": vectors},
        system_features={
            "cell": graph.cells,
            "total_charge": torch.zeros_like(spins),
            "total_spin": spins,  # as versions before 0.6 call it
            "spin_multiplicity": spins,
        },
    )


def _traits(direct: bool, neighbors: int, charged: bool) -> Traits:
    every = neighbors >= _ALL
    return Traits(
        conservative=not direct,
        rotation_invariant=False,
        reflection_invariant=False,
        permutation_invariant=every,  # equally near neighbours are taken in the order of atoms
        size_consistent=False,
        smoothness=2 if every else -1,
        stress=not (direct and charged),
        atomic_energies=False,
        open_shells=charged,
    )


def names() -> tuple[str, ...]:
    """The teachers this file can load."""
    return tuple(_MODELS)


def traits(name: str) -> Traits:
    """What a teacher gives, known without its package."""
    return _traits(_MODELS[name].direct, _MODELS[name].neighbors, _MODELS[name].charged)


def weights(name: str) -> Weights:
    """Where the weights of a teacher are published."""
    return Weights(f"{_ADDRESS}/{_MODELS[name].file}", digest=None)


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """An Orb teacher. Raises MissingPackageError, and IntegrityError where its file is not a model of its kind."""
    pretrained = _package(name)
    kind = _MODELS[name]
    path, sha256 = find_weights(name, weights(name))
    model = _filled(_empty(pretrained, kind, dtype), path, name)
    potential = Orb(model, name, neighbors=kind.neighbors, elements=_DATA[kind.data].elements)
    return Teacher(
        name=name,
        potential=potential.to(device, dtype).eval(),
        weights_sha256=sha256,
        package=f"orb-models {importlib.metadata.version('orb-models')}",
        level_of_theory=_DATA[kind.data].level_of_theory,
        licence_code="Apache-2.0",
        licence_weights="Apache-2.0",
        citation=_CITATIONS["omol" if kind.data == "omol" else "v3"],
    )


def _package(name: str) -> Any:
    """Raises MissingPackageError."""
    with importing(name, "'orb-models>=0.5.5'", "orb"):
        from orb_models.forcefield import pretrained  # lazy: an optional package

        if "has_charge_spin_cond" not in inspect.signature(pretrained.orb_v3_direct_architecture).parameters:
            raise ImportError("the installed one is older than 0.5.5")
    return pretrained


def _empty(pretrained: Any, kind: _Model, dtype: torch.dtype) -> Any:
    """The network of a kind, as orb-models makes it, with numbers of no meaning; constants are made in this type."""
    build = pretrained.orb_v3_direct_architecture if kind.direct else pretrained.orb_v3_conservative_architecture
    with default_dtype(dtype):
        model = build(has_charge_spin_cond=kind.charged, has_stress=not kind.charged, device="cpu").to(dtype)
    if not kind.direct:
        model.pair_repulsion_fn.node_aggregation = "mean"  # as these weights were trained, whatever the version
    return model


def _filled(model: Any, path: Path, name: str) -> Any:
    """The network with the numbers of a file, which names no class. Raises IntegrityError."""
    remedy = f"fetch it again: zoo teachers fetch {name}"
    content = read_pickle(path, lambda name: None, remedy, mapped=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # orb-models warns of heads that are missing or too many
            model.load_state_dict(content, strict=True)
    except (RuntimeError, UserWarning, AttributeError, TypeError, ValueError) as error:
        raise unreadable(path, error, remedy, f"weights of {name.partition('/')[0]}") from error
    return model


def calculator(name: str, dtype: torch.dtype) -> Any:
    """orb-models' own calculator of the same weights, for comparisons. Raises as ``load`` does.

    orb-models computes in PyTorch's default type, which is set while it does.
    """
    pretrained = _package(name)
    try:
        from orb_models.forcefield.inference.calculator import ORBCalculator  # lazy: an optional package
    except ImportError:  # before version 0.6
        from orb_models.forcefield.calculator import ORBCalculator  # lazy: an optional package

    class InItsType(ORBCalculator):  # type: ignore[misc]
        def calculate(self, *given: Any, **asked: Any) -> None:
            with default_dtype(dtype):
                super().calculate(*given, **asked)

    path = find_weights(name, weights(name)).path
    with warnings.catch_warnings(), default_dtype(dtype):
        warnings.simplefilter("ignore")  # it warns of the type that it sets
        build = pretrained.ORB_PRETRAINED_MODELS[name.partition("/")[0]]
        precision = "float64" if dtype == torch.float64 else "float32-highest"
        built = build(weights_path=str(path), device="cpu", precision=precision, compile=False)
        if isinstance(built, tuple):  # since version 0.6, with what makes its graphs
            return InItsType(built[0], atoms_adapter=built[1], device="cpu")
        return InItsType(built, device="cpu")
