"""A potential as a model of TorchSim: dynamics and relaxation of many systems at once, on the device."""
# mypy: allow-subclassing-any

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from ase import Atoms
from ase.cell import Cell
from torch import Tensor

from zoo.calculator import Follower, check_elements
from zoo.errors import CapabilityError, ConfigError, DivergedError, MissingPackageError, StructureError
from zoo.graph import Graph, collate
from zoo.neighbors import COINCIDENT, build_graph, check_structure, within
from zoo.potential import Potential, Prediction, given

try:  # an optional package: who imports this module asks for it
    import torch_sim.neighbors as lists
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise MissingPackageError(f"TorchSim is not installed ({error}); run: pip install torch-sim-atomistic") from error

P = ParamSpec("P")
R = TypeVar("R")
Check = Callable[[Atoms, Graph], None]
_STATED = ("charge", "total_charge", "spin")  # of a system, which a check may want to see
_NEAR = 1e4  # Å; where no two atoms of a state are farther apart than this, no system is looked at for it
_MANY = 5000  # atoms of one system, beyond which not all pairs are tried


class TorchSimModel(ModelInterface):
    """Energy (eV), forces (eV/Å) and stress (eV/Å³, ASE's sign) of a potential, for states of one or many systems.

    ``dtype`` is that of states, in which positions move and results are given: double by default, as in ASE, whatever
    the potential computes in. ``check`` sees each system with its graph, and raises where it must stop: at first, when
    elements, cells, periodicity or the systems themselves have changed, and when two atoms are nearer to each other
    than ``nearest`` (Å), by default than any it let pass. ``predict`` answers in the potential's place, of graphs in
    float64, and ``follow`` makes from edges what answers while they stay, as compiled code does, or None. Neighbours
    are kept while no atom has moved by half of ``skin`` (Å); with ``seeks_at_once``, which is so on a GPU, TorchSim's
    lists seek those of all systems at once, else vesin those of one after another. The stress of a system that is not
    periodic in all three directions is NaN. Raises CapabilityError for a potential without energies.
    """

    def __init__(
        self,
        potential: Potential,
        *,
        check: Check | None = None,
        nearest: float | None = None,
        predict: Callable[..., Prediction] | None = None,
        follow: Callable[[Graph], Follower | None] | None = None,
        dtype: torch.dtype = torch.float64,
        skin: float = 0.5,
    ) -> None:
        super().__init__()
        if not potential.traits.energies:
            raise CapabilityError(f"{type(potential).__name__} gives forces alone, and TorchSim asks for energies too")
        if not skin > 0:
            raise ConfigError(f"a skin of {skin} Å; give a positive one")
        self.potential = potential
        self.searches = 0  # how often neighbours were sought
        self._check, self._nearest, self._skin = check, COINCIDENT if check is None else nearest, skin
        self.seeks_at_once = potential.device.type != "cpu" and hasattr(lists, "torchsim_nl")  # which came with 0.5
        self._predict, self._follow = predict, follow
        self._device, self._dtype = potential.device, dtype
        self._compute_forces, self._compute_stress = True, potential.traits.stress
        self._memory_scales_with = "n_atoms_x_density"
        self._frame: _Frame | None = None
        self._followed: tuple[Graph, Follower] | None = None
        self._closest: float | None = None  # Å, below which all is looked at again; None: nothing was let pass

    @property
    def compute_stress(self) -> bool:
        """Whether stress is among the results."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, wanted: bool) -> None:
        """Raises NotImplementedError, as TorchSim has it, for a potential without stress."""
        if wanted and not self.potential.traits.stress:
            raise NotImplementedError(f"{type(self.potential).__name__} gives no stress; keep the cells as they are")
        self._compute_stress = wanted

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Of a SimState: energy (systems,), forces (atoms, 3) and, where it is computed, stress (systems, 3, 3).

        Raises StructureError, DomainError or DivergedError, which name the system.
        """
        frame, positions = _Frame.of(state), state.positions.detach().to(torch.float64)
        edges, follower = self._follow_to(state, frame, positions)
        if self._closest is None:
            self._look(state, frame, edges, positions)
        stress = self._compute_stress and bool(frame.periodic.all())
        found, shortest = follower(positions.cpu(), stress=stress)
        if self._closest is None or shortest < self._closest:
            self._look(state, frame, edges, positions)
        _check_finite(found, frame.structure.cpu())
        results = {"energy": found.energy, "forces": given(found.forces)}
        if self._compute_stress:
            none = torch.full((len(frame.cells), 3, 3), torch.nan)
            results["stress"] = none if found.stress is None else found.stress
        return {key: tensor.to(state.positions) for key, tensor in results.items()}

    def _follow_to(self, state: Any, frame: "_Frame", positions: Tensor) -> tuple[Graph, Follower]:
        """Edges that hold for these positions, those of the last call where they do, and what answers meanwhile."""
        if self._frame is None or not self._frame.same(frame):
            self._frame, self._followed, self._closest = frame.copy(), None, None
        if self._followed is None or not self._holds(self._followed[0], positions):
            edges = self._seek(_systems(state, frame), frame, positions)
            found = None if self._follow is None else self._follow(edges)
            self._followed = edges, found or self._follow_by_filter(edges)
            self.searches += 1
        return self._followed

    def _holds(self, edges: Graph, positions: Tensor) -> bool:
        moves = (positions - edges.positions).square().sum(dim=1)  # (atoms,) Å²; NaN holds nothing
        return bool((moves < (self._skin / 2) ** 2).all())

    def _seek(self, systems: Iterator[Atoms], frame: "_Frame", positions: Tensor) -> Graph:
        """Edges up to the skin beyond the cutoff."""
        reach = self.potential.cutoff + self._skin
        if self.seeks_at_once:
            if self._closest is None or not _near(positions):
                for index, atoms in enumerate(systems):
                    _named(index, _check_places, atoms)
            return edges_of_all(frame, positions, reach)
        found = collate([_named(index, build_graph, atoms, reach) for index, atoms in enumerate(systems)])
        return found.to(positions.device, torch.float64)

    def _look(self, state: Any, frame: "_Frame", edges: Graph, positions: Tensor) -> None:
        """Lets all systems pass as they are now, or raises."""
        graph, shortest = within(edges.with_geometry(positions, edges.cells), self.potential.cutoff)
        for index, (atoms, part) in enumerate(zip(_systems(state, frame), _apart(graph), strict=True)):
            _named(index, check_elements, atoms, self.potential)
            if shortest < COINCIDENT:
                _named(index, build_graph, atoms, self.potential.cutoff)  # says which two they are
            if self._check is not None:
                _named(index, self._check, atoms, part)
        self._closest = shortest if self._nearest is None else self._nearest

    def _follow_by_filter(self, edges: Graph) -> Follower:
        """By the potential, or by ``predict``, of the edges within the cutoff."""

        def follower(positions: Tensor, *, stress: bool) -> tuple[Prediction, float]:
            moved = edges.with_geometry(positions.to(edges.positions), edges.cells)
            graph, shortest = within(moved, self.potential.cutoff)
            taken = self.potential.dtype if self._predict is None else torch.float64  # in which edges are measured
            predict = self._predict or self.potential.predict
            return predict(graph.to(self.potential.device, taken), stress=stress).cpu(), shortest

        return follower


@dataclass(frozen=True)
class _Frame:
    """What of a state, beside the positions, decides which edges there are."""

    numbers: Tensor  # (atoms,)
    structure: Tensor  # (atoms,)
    cells: Tensor  # (systems, 3, 3) Å, rows are lattice vectors
    periodic: Tensor  # (systems, 3)

    @classmethod
    def of(cls, state: Any) -> "_Frame":
        cells = state.row_vector_cell.detach().to(torch.float64)
        periodic = torch.as_tensor(state.pbc, dtype=torch.bool, device=cells.device).expand(len(cells), 3)
        return cls(state.atomic_numbers.to(torch.int64), state.system_idx.to(torch.int64), cells, periodic)

    def copy(self) -> "_Frame":
        """Which stays as it is when the state is changed in place."""
        return _Frame(**{key: value.clone() for key, value in vars(self).items()})

    def same(self, other: "_Frame") -> bool:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(torch.equal(mine, yours) for mine, yours in pairs)


def edges_of_all(frame: _Frame, positions: Tensor, reach: float) -> Graph:
    """As ``build_graph`` finds them, for all systems at once.

    By the list that TorchSim holds for the fastest here; it tries all pairs on a GPU, so that systems of very many
    atoms go to a cell list. Positions and cells are not checked.
    """
    cells = torch.where(frame.periodic[:, :, None], frame.cells, 0.0)  # (systems, 3, 3)
    ends, _, shifts = _list_for(frame)(positions, _complete(cells), frame.periodic, reach, frame.structure)
    return Graph(
        numbers=frame.numbers,
        positions=positions.clone(),  # which dynamics may change in place
        cells=cells,
        periodic=frame.periodic,
        structure=frame.structure,
        centers=ends[0].to(torch.int64),
        neighbors=ends[1].to(torch.int64),
        shifts=shifts.to(torch.float64),
    )


def _list_for(frame: _Frame) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """One of TorchSim's functions, which give ends (2, edges), systems (edges,) and shifts (edges, 3)."""
    large = int(torch.bincount(frame.structure).max()) > _MANY
    found = lists.alchemiops_nl_cell_list if large and lists.ALCHEMIOPS_AVAILABLE else lists.torchsim_nl
    return cast(Callable[..., tuple[Tensor, Tensor, Tensor]], found)


def _complete(cells: Tensor) -> Tensor:
    """(systems, 3, 3) The cells, with vectors of their own choosing along axes that have none."""
    if bool(cells.any(dim=2).all()):
        return cells
    whole = np.stack([Cell(cell).complete().array for cell in cells.cpu().numpy()])
    return torch.from_numpy(whole).to(cells)


def _near(positions: Tensor) -> bool:
    """Whether all are numbers, and none is far from another."""
    return bool((positions.amax(dim=0) - positions.amin(dim=0) < _NEAR).all())


def _check_places(atoms: Atoms) -> None:
    """Raises StructureError as ``build_graph`` does, and where atoms are that far apart in a periodic system too:
    TorchSim's lists lose them."""
    check_structure(atoms)
    check_structure(Atoms(atoms.numbers, atoms.positions))


def _systems(state: Any, frame: _Frame) -> Iterator[Atoms]:
    """Each system of a state, with what it states of its electrons."""
    counts = torch.bincount(frame.structure, minlength=len(frame.cells)).tolist()
    numbers = torch.split(frame.numbers.cpu(), counts)
    positions = torch.split(state.positions.detach().cpu(), counts)
    extras = getattr(state, "system_extras", {})
    stated = {key: extras[key].reshape(len(counts)).tolist() for key in _STATED if key in extras}
    for index, (cell, periodic) in enumerate(zip(frame.cells.cpu().numpy(), frame.periodic.cpu().numpy(), strict=True)):
        info = {key: values[index] for key, values in stated.items()}
        yield Atoms(numbers[index].numpy(), positions[index].numpy(), cell=cell, pbc=periodic, info=info)


def _apart(graph: Graph) -> Iterator[Graph]:
    """The graphs that a batch was made of, in main memory."""
    whole = graph.to("cpu", torch.float64)
    owners = whole.structure[whole.centers]  # (edges,)
    order = owners.argsort(stable=True)
    edges = torch.split(order, torch.bincount(owners, minlength=whole.num_structures).tolist())
    start = 0
    for index, count in enumerate(whole.atom_counts.tolist()):
        mine, atoms = edges[index], slice(start, start + count)
        yield Graph(
            numbers=whole.numbers[atoms],
            positions=whole.positions[atoms],
            cells=whole.cells[index : index + 1],
            periodic=whole.periodic[index : index + 1],
            structure=whole.structure[atoms] - index,
            centers=whole.centers[mine] - start,
            neighbors=whole.neighbors[mine] - start,
            shifts=whole.shifts[mine],
        )
        start += count


def _named(index: int, function: Callable[P, R], *given: P.args, **options: P.kwargs) -> R:
    """What a function says of a system; what it raises names the system."""
    try:
        return function(*given, **options)
    except StructureError as error:
        raise type(error)(f"system {index}: {error}") from error


def _check_finite(found: Prediction, structure: Tensor) -> None:
    """Raises DivergedError where an energy or a force is not a number."""
    atoms = given(found.forces).isfinite().all(dim=1)  # (atoms,)
    if bool(atoms.all()) and bool(found.energy.isfinite().all()):
        return
    broken = ~found.energy.isfinite()
    broken[structure[~atoms]] = True
    index = int(broken.nonzero()[0])
    raise DivergedError(
        f"system {index}: its energy or a force is not finite; start from relaxed structures, take a shorter time "
        "step, or load the engine with dtype='float64'"
    )
