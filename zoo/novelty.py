"""How new the surroundings of an atom are to a student, told as the error of the force that is to be expected on it.

The last node features of the atoms of the training set make a Gaussian for each element. The Mahalanobis distance ``d``
of an atom from that of its element, times a scale ``s`` of the element that was fitted to the errors on the validation
set, is the error: ``√⟨|ΔF|²⟩ = s d``. It takes a forward pass without derivatives, and a file of features² numbers
an element.

In benchmarks/novelty.md its rank correlation with the true errors of single atoms of the test set is 0.75 for silicon,
0.49 for ethanol and 0.77 for crystals of 40 elements. With one covariance for all elements it is 0.75, 0.48 and 0.63;
by last-layer prediction rigidity (Bigi, Chong, Ceriotti, Grasselli, 2024, arXiv 2403.02251), whose one quadratic form
has no means either, 0.75, 0.47 and 0.30; by the length of the predicted force alone 0.57, 0.20 and 0.77.

Two things it cannot see: symmetry, by which forces vanish whatever the energy is; and how much worse than in proportion
errors become far away. Beyond the threshold the number says that nothing is known, not how large the error is.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from ase import Atoms
from safetensors.torch import save
from torch import Tensor

from zoo.calculator import check_elements
from zoo.errors import CapabilityError, LabelError
from zoo.graph import Graph, collate
from zoo.neighbors import build_graph
from zoo.potential import Potential, given
from zoo.tensors import Layout
from zoo.units import MEV_PER_EV

_RIDGE = 1e-4  # of the mean variance of a feature, added to the variance of each
_SHARED = 0.25  # of as many atoms as there are features: for so many counts the covariance of all elements
FEWEST = 10  # atoms with known forces, to calibrate on and to tell on
_PRIOR = 10  # likewise for so many atoms the scale of all elements
_LARGEST = 200 << 20  # bytes of all factors
_PERCENTILE = 99  # of the test structures: at least one is newer, so that an odd one does not set the limit
_AT_ONCE = 10_000  # atoms and edges together, in a pass
_SMALLEST = 1e-12  # mean variance of features that counts as none


@dataclass(frozen=True)
class Novelty:
    """How new the surroundings of the atoms of one structure are to an engine.

    Of a large structure the largest is larger: it is of more atoms.
    """

    # (atoms,) length of the error of the force to be expected; infinite for an untrained element
    atoms_meV_A: np.ndarray
    threshold_meV_A: float  # the largest in the test set, but for the newest of its structures

    @property
    def atom(self) -> int:
        """The atom whose surroundings are newest."""
        return int(self.atoms_meV_A.argmax())

    @property
    def largest(self) -> float:
        """That of the newest atom, meV/Å."""
        return float(self.atoms_meV_A.max())

    @property
    def beyond(self) -> bool:
        """Whether the newest atom is beyond the threshold: do not trust what is said of it."""
        return not self.largest <= self.threshold_meV_A

    def newer_than(self, other: "Novelty") -> bool:
        """Whether its newest atom is newer than that of another; what is not a number is newer than all that are."""
        return not math.isnan(other.largest) and not self.largest <= other.largest

    def __str__(self) -> str:
        told = f"atom {self.atom} is the newest, with a force error of {self.largest:.3g} meV/Å to be expected"
        verdict = "beyond" if self.beyond else "within"
        return f"{told}, {verdict} the {self.threshold_meV_A:.3g} meV/Å of the test set"


@dataclass(frozen=True)
class Described:
    """What a potential has to say of the atoms of some structures, in order."""

    features: Tensor  # (atoms, features) float64
    numbers: Tensor  # (atoms,) int64
    counts: tuple[int, ...]  # atoms of each structure
    forces: Tensor | None = None  # (atoms, 3) eV/Å, float64


@dataclass(frozen=True)
class Gaussians:
    """The features of the atoms of a training set: one Gaussian an element."""

    elements: tuple[int, ...]  # atomic numbers, in the order of the tables
    means: Tensor  # (elements, features) float32
    factors: Tensor  # (elements, features, features) float32, whose squares are the inverse covariances
    atoms: Tensor  # (elements,) int64, of the training set

    def rows(self, numbers: Tensor) -> Tensor:
        """(atoms,) The row of each atom's element in the tables."""
        table = torch.zeros(max(*self.elements, 0) + 1, dtype=torch.int64)
        table[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        return table[numbers]

    def distances(self, features: Tensor, numbers: Tensor) -> Tensor:
        """(atoms,) float64 Mahalanobis distances over √features, about 1 in the training set; inf of other elements."""
        found = torch.full((len(numbers),), torch.inf, dtype=torch.float64)
        for row, element in enumerate(self.elements):
            own = (numbers == element).nonzero()[:, 0]
            if len(own) and self.atoms[row] > 0:
                away = features[own].double() - self.means[row].double()  # (own, features)
                found[own] = (away @ self.factors[row].double()).norm(dim=1)
        return found / math.sqrt(features.shape[1])


@dataclass(frozen=True)
class NoveltyModel:
    """What a model folder keeps to tell how new something is: Gaussians, and the error that goes with a distance."""

    gaussians: Gaussians
    scales_meV_A: Tensor  # (elements,) float64, to be expected at the distance 1
    threshold_meV_A: float

    def expected(self, described: Described) -> np.ndarray:
        """(atoms,) meV/Å"""
        distances = self.gaussians.distances(described.features, described.numbers)
        rows = self.gaussians.rows(described.numbers)
        return (self.scales_meV_A[rows] * distances).numpy()

    def encode(self) -> bytes:
        """What the file holds; the same bytes for the same model."""
        tensors = {
            "means": self.gaussians.means,
            "factors": self.gaussians.factors,
            "atoms": self.gaussians.atoms,
            "scales": self.scales_meV_A,
            "threshold": torch.tensor([self.threshold_meV_A], dtype=torch.float64),
        }
        return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})

    @classmethod
    def decode(cls, tensors: Mapping[str, Tensor], elements: Sequence[int]) -> Self:
        """What tensors of ``novelty_layout`` say of a potential that knows these elements, in its order."""
        gaussians = Gaussians(tuple(elements), tensors["means"], tensors["factors"], tensors["atoms"])
        return cls(gaussians, tensors["scales"], float(tensors["threshold"][0]))

    def of(self, potential: Potential, structures: Sequence[Atoms]) -> list[Novelty]:
        """How new these are, in order, within the domain or beyond. Raises StructureError, DomainError."""
        expected = self.expected(describe(potential, structures))
        stops = np.cumsum([len(atoms) for atoms in structures])[:-1]
        return [Novelty(own, self.threshold_meV_A) for own in np.split(expected, stops)] if structures else []


def describe(potential: Potential, structures: Sequence[Atoms], *, forces: bool = False) -> Described:
    """Features of all atoms, and forces where asked for. Raises CapabilityError, StructureError, DomainError."""
    parts = list(_passes(potential, structures, forces=forces))
    nothing = torch.zeros(0, potential.traits.features, dtype=torch.float64)
    return Described(
        features=torch.cat([nothing, *(part.features for part in parts)]),
        numbers=torch.tensor([number for atoms in structures for number in atoms.numbers.tolist()], dtype=torch.int64),
        counts=tuple(len(atoms) for atoms in structures),
        forces=torch.cat([given(part.forces) for part in parts]) if forces and parts else None,
    )


def fit(described: Described, elements: Sequence[int]) -> Gaussians:
    """Gaussians of the atoms of a training set.

    The covariance of an element is weighed with that of all elements about their own means, so that a rare element has
    one too. Raises CapabilityError where all would be too large.
    """
    moments = _Moments(elements, described.features.shape[1])
    moments.add(described)
    return moments.gaussians()


def fit_structures(potential: Potential, structures: Sequence[Atoms]) -> Gaussians:
    """``fit`` to the atoms of these, of which one pass is held at a time.

    Raises CapabilityError, StructureError, DomainError.
    """
    moments = _Moments(potential.elements, potential.traits.features)
    for part in _passes(potential, structures):
        moments.add(part)
    return moments.gaussians()


def force_errors(described: Described, truth: np.ndarray) -> np.ndarray:
    """(atoms,) meV/Å Lengths of the differences from true forces (atoms, 3) eV/Å; NaN where these are."""
    lengths: np.ndarray = np.linalg.norm(given(described.forces).numpy() - truth, axis=1)
    return lengths * MEV_PER_EV


def calibrate(gaussians: Gaussians, described: Described, truth: np.ndarray) -> Tensor:
    """(elements,) meV/Å The scales by which distances are most likely errors, normal in each direction.

    Of structures to validate on, with their true forces (atoms, 3) eV/Å, NaN where nobody knows them. The scale of all
    atoms counts for a few atoms of each element, and alone where there are none. Raises LabelError for too few atoms.
    """
    distances = gaussians.distances(described.features, described.numbers).numpy()
    errors, elements = force_errors(described, truth), len(gaussians.elements)
    known = np.isfinite(distances) & np.isfinite(errors)
    known &= distances > 0  # on its mean an atom says nothing of the scale
    if known.sum() < FEWEST:
        raise LabelError(f"{known.sum()} atoms with known forces to calibrate on; give {FEWEST} or more")
    squares = np.square(errors[known] / distances[known])
    rows = gaussians.rows(described.numbers).numpy()[known]
    sums, counts = np.bincount(rows, squares, minlength=elements), np.bincount(rows, minlength=elements)
    return torch.from_numpy(np.sqrt((sums + _PRIOR * squares.mean()) / (counts + _PRIOR)))


def threshold(novelty: np.ndarray, counts: Sequence[int]) -> float:
    """The largest novelty (atoms,) of structures of so many atoms, but for the newest in a hundred, and at least one.

    Atoms of an element that training lacked, which are infinitely new, are left out.
    """
    finite = np.where(np.isfinite(novelty), novelty, 0.0)
    largest = [own.max() for own in np.split(finite, np.cumsum(counts)[:-1])]
    return float(np.percentile(largest, _PERCENTILE, method="lower"))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's, of (values,) each; equal values share the mean of their ranks. None where all of one are equal."""
    one, two = (ranks - ranks.mean() for ranks in map(_ranks, (first, second)))
    size = math.sqrt(one @ one) * math.sqrt(two @ two)
    return float(np.clip(one @ two / size, -1, 1)) if size > 0 else None


def novelty_layout(potential: Potential) -> Layout:
    """Types and shapes of the tensors in the file of such a potential's novelty."""
    elements, features = len(potential.elements), potential.traits.features
    return {
        "means": (torch.float32, (elements, features)),
        "factors": (torch.float32, (elements, features, features)),
        "atoms": (torch.int64, (elements,)),
        "scales": (torch.float64, (elements,)),  # meV/Å
        "threshold": (torch.float64, (1,)),  # meV/Å
    }


class _Moments:
    """What Gaussians take of the atoms of a training set, gathered pass by pass."""

    def __init__(self, elements: Sequence[int], features: int) -> None:
        """Raises CapabilityError where the factors would be too large."""
        size = 4 * len(elements) * features**2
        if size > _LARGEST:
            told = f"{len(elements)} elements with {features} features take {size / 1e6:.0f} MB"
            raise CapabilityError(f"a novelty score of {told}, over {_LARGEST / 1e6:.0f}; leave out what is not needed")
        self.elements = tuple(elements)
        self.atoms = torch.zeros(len(elements), dtype=torch.int64)
        self.means = torch.zeros(len(elements), features, dtype=torch.float64)
        self.products = torch.zeros(len(elements), features, features, dtype=torch.float64)  # Σ (f − mean)(f − mean)ᵀ

    def add(self, described: Described) -> None:
        """Each element's about the mean of all its atoms so far, as Chan, Golub and LeVeque (1983) add parts."""
        for row, element in enumerate(self.elements):
            own = described.features[described.numbers == element]  # (own, features)
            if len(own) == 0:
                continue
            before, after = int(self.atoms[row]), int(self.atoms[row]) + len(own)
            mean = own.mean(dim=0)
            away, shift = own - mean, mean - self.means[row]
            self.products[row] += away.T @ away + before * len(own) / after * torch.outer(shift, shift)
            self.means[row] += len(own) / after * shift
            self.atoms[row] = after

    def gaussians(self) -> Gaussians:
        pooled = self.products.sum(dim=0) / int(self.atoms.sum())
        rows = zip(self.products, self.atoms.tolist(), strict=True)
        factors = torch.stack([_factor(products, atoms, pooled).float() for products, atoms in rows])
        return Gaussians(self.elements, self.means.float(), factors, self.atoms)


def _factor(products: Tensor, atoms: int, pooled: Tensor) -> Tensor:
    """(features, features) By which differences from a mean, with such a sum of outer products, get the variance 1."""
    features = pooled.shape[0]
    shared = _SHARED * features
    covariance = (products + shared * pooled) / (atoms + shared)
    ridge = _RIDGE * pooled.diagonal().mean().clamp(min=_SMALLEST)
    root = torch.linalg.cholesky(covariance + ridge * torch.eye(features, dtype=pooled.dtype))
    factor: Tensor = torch.linalg.solve_triangular(root.T, torch.eye(features, dtype=pooled.dtype), upper=True)
    return factor


def _ranks(values: np.ndarray) -> np.ndarray:
    """(values,) from 1 on; equal ones share the mean of theirs."""
    _, own, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[own]
    return ranks


def _passes(potential: Potential, structures: Sequence[Atoms], *, forces: bool = False) -> Iterator[Described]:
    """``describe``, pass by pass."""
    if potential.traits.features == 0:
        raise CapabilityError(f"{type(potential).__name__} gives no node features, so nothing tells what is new to it")
    for graphs in _batches(potential, structures):
        graph = collate(graphs).to(potential.device, potential.dtype)
        told = potential.predict(graph, forces=forces, features=True).cpu()
        yield Described(
            features=given(told.features).double(),
            numbers=graph.numbers.cpu(),
            counts=tuple(one.num_atoms for one in graphs),
            forces=given(told.forces).double() if forces else None,
        )


def _batches(potential: Potential, structures: Sequence[Atoms]) -> Iterator[list[Graph]]:
    """Structures in order, of so many atoms and edges together, or one that has more."""
    batch: list[Graph] = []
    total = 0
    for atoms in structures:
        check_elements(atoms, potential)
        graph = build_graph(atoms, potential.cutoff)
        size = graph.num_atoms + graph.num_edges
        if batch and total + size > _AT_ONCE:
            yield batch
            batch, total = [], 0
        batch.append(graph)
        total += size
    if batch:
        yield batch
