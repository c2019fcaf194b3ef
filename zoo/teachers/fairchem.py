"""UMA and eSEN, the foundation models of the package ``fairchem-core`` (Wood et al., arXiv 2506.23971).

Atoms carry spherical harmonics that edges rotate into their own frames; a mirror image has a slightly different energy.
Energies are sums over atoms, and node features, the scalars of the last layer, turn with nothing. UMA mixes its layers
by composition, charge, spin and task, so that two molecules far apart are not two molecules. A name says the task, and
with it the level of theory: ``uma-s-1p1/omol-teacher``. Structures of ``omol`` are neutral, with one unpaired electron
where the number of electrons is odd; for other tasks the models expect no charge and spin 0, as they were trained. A
model that cannot see an atom without neighbours (``supports_single_atoms``) refuses one. Conserving models see 300
neighbours of an atom, more than there are within 6 Å in all but compressed matter, where a warning says so; direct ones
30, so that energy and forces jump as neighbours change places.
"""

import importlib
import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ConfigError, DomainError, IntegrityError
from zoo.graph import Graph
from zoo.ops import scatter_sum
from zoo.potential import AtomOutputs, Potential, Traits
from zoo.teachers.base import Teacher
from zoo.teachers.fairchem_file import open_model
from zoo.teachers.inputs import check_elements, lowest_multiplicities, nearest, warn_of_hidden
from zoo.teachers.packages import importing
from zoo.teachers.theories import OMAT, OMOL
from zoo.teachers.weights import OwnTeacher, Weights, find_weights

_LICENCE = "LicenseRef-FAIR-Chemistry-v1"
_FEATURES = 128  # scalars of an atom, as its authors configure the training
_TIES = 0.01  # Å²; fairchem keeps all neighbours whose squared distance is no more than this beyond the next
_DENSEST = 158  # neighbours within 6 Å, in diamond
_MOLECULAR = "omol"  # the task whose models are told charge and spin


@dataclass(frozen=True)
class _Task:
    """A level of theory that a model can be asked for."""

    level_of_theory: str
    elements: tuple[int, ...]


_TASKS = {
    "omol": _Task(OMOL, tuple(range(1, 84))),  # H to Bi
    "omat": _Task(OMAT, (*range(1, 84), *range(89, 95))),  # H to Bi and Ac to Pu
}


@dataclass(frozen=True)
class _Model:
    """One set of weights, and which task it is asked for."""

    repository: str  # of the Hub
    file: str
    task: str
    direct: bool = False
    mixed: bool = False  # by composition
    citation: str = "B. M. Wood et al., UMA: A Family of Universal Models for Atoms, arXiv:2506.23971 (2025)"


def _table() -> dict[str, _Model]:
    models = {
        f"{model}/{task}-teacher": _Model("facebook/UMA", f"{model}.pt", task, mixed=True)
        for model in ("uma-s-1p2p1", "uma-s-1p1", "uma-m-1p1")
        for task in _TASKS
    }
    paper = "D. S. Levine et al., The Open Molecules 2025 (OMol25) Dataset, Evaluations, and Models, arXiv:2505.08762"
    for model, file, direct in (
        ("esen-sm-conserving-all-omol", "esen_sm_conserving_all.pt", False),
        ("esen-sm-direct-all-omol", "esen_sm_direct_all.pt", True),
        ("esen-md-direct-all-omol", "esen_md_direct_all.pt", True),
    ):
        models[f"{model}/teacher"] = _Model("facebook/OMol25", file, "omol", direct=direct, citation=paper)
    return models


_MODELS = _table()


class FairChem(Potential):
    """A UMA or eSEN model as a zoo potential: its own layers up to energies and forces, zoo's derivatives of them.

    The envelope of messages has two continuous derivatives.
    """

    def __init__(self, model: Any, name: str, task: str, elements: tuple[int, ...]) -> None:
        """``model`` is a ``HydraModel`` with its tasks set up. Raises IntegrityError where it lacks this one."""
        super().__init__()
        self.name, self.task, self.elements = name, task, elements
        energy, forces = _task_of(model, task, "energy"), _task_of(model, task, "forces")
        backbone = model.backbone
        direct = bool(backbone.regress_config.direct_forces)
        self.supports_single_atoms = bool(model.supports_single_atoms)
        self.cutoff, self.neighbors = float(backbone.cutoff), int(backbone.max_neighbors)
        self.scale, self.offset = float(energy.normalizer.rmsd), float(energy.normalizer.mean)
        self.force_scale = float(forces.normalizer.rmsd) if direct else 1.0
        references = energy.element_references
        self._references = None if references is None else tuple(references.element_references.double().tolist())
        self.backbone = backbone.requires_grad_(False)
        heads = [_of_task(head, task) for head in model.output_heads.values()]
        self.energy_head = _only(heads, "energy_block").requires_grad_(False)
        self.force_head = _only(heads, "linear").requires_grad_(False) if direct else None
        mixed, exact = bool(getattr(backbone, "num_experts", 0)), backbone.ff_type == "spectral"
        self.traits = replace(
            _traits(direct, mixed, self.neighbors, task), rotation_invariant=exact, features=backbone.sphere_channels
        )  # layers on a grid of directions follow a rotation only so far

    def atomic_energies(self, graph: Graph) -> Tensor:
        return self.atomic_outputs(graph).energies

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        """Raises DomainError for an atom without others, which not all models see."""
        check_elements(graph, self.elements, self.name)
        counts = graph.atom_counts
        if not self.supports_single_atoms and bool(((counts == 1) & ~graph.periodic.any(dim=1)).any()):
            raise DomainError(
                f"a single atom, which {self.name} does not take; leave it out, or choose a teacher that does"
            )
        near = nearest(graph, self.neighbors, beyond=_TIES)
        if self.traits.smoothness >= 0:
            warn_of_hidden(graph, near, self.neighbors, self.name)
        data = _data_of(near, self.task)
        nodes = self.backbone(data)["node_embedding"]  # (atoms, harmonics, channels)
        scalars = nodes[:, 0, :]  # (atoms, channels)
        own = self.energy_head.energy_block(scalars)[:, 0]  # (atoms,)
        sizes = counts.to(own.dtype)[graph.structure]
        if self.energy_head.reduce == "mean":
            own = own / sizes
        forces = None
        if self.force_head is not None:
            forces = self.force_head(data, {"node_embedding": nodes})["forces"] * self.force_scale
        return AtomOutputs(own * self.scale + self.offset / sizes, features=scalars, forces=forces)

    def reference_energies(self, numbers: Tensor) -> Tensor:
        """(atoms,) eV, float64: the constants of the elements that fairchem adds."""
        if self._references is None:
            return super().reference_energies(numbers)
        return torch.tensor(self._references, dtype=torch.float64, device=numbers.device)[numbers]

    def element_embeddings(self) -> Tensor:
        """(elements, channels) What the network begins with, in the order of ``elements``."""
        table: Tensor = self.backbone.sphere_embedding.weight
        return table[list(self.elements)]


def _traits(direct: bool, mixed: bool, neighbors: int, task: str) -> Traits:
    return Traits(
        conservative=not direct,
        reflection_invariant=False,
        size_consistent=not mixed,
        smoothness=2 if neighbors > _DENSEST else -1,
        stress=not direct,
        features=_FEATURES,
        open_shells=task == _MOLECULAR,
    )


def _task_of(model: Any, task: str, kind: str) -> Any:
    """The task of a model that is called so, for energy or forces. Raises IntegrityError."""
    of_task = model.dataset_to_tasks.get(task, [])
    found = [one for one in of_task if one.property == kind]
    if len(found) != 1:
        known = ", ".join(sorted(model.dataset_to_tasks)) or "none"
        raise IntegrityError(f"the weights have no {kind} of the task {task}, they have those of {known}; fetch others")
    return found[0]


def _of_task(head: Any, task: str) -> Any:
    """The layers of a head, those of one task where there is a set for each."""
    if not hasattr(head, "head"):
        return head
    if hasattr(head, "dataset_name_to_exp"):
        place = next(head.parameters())
        head.merge_MOLE_model(_OfTask([task], place))
    return head.head


@dataclass(frozen=True)
class _OfTask:
    """What ``merge_MOLE_model`` reads of its data."""

    dataset: list[str]
    pos: Tensor


def _only(heads: list[Any], layer: str) -> Any:
    """The one head that has a layer of this name. Raises IntegrityError."""
    found = [head for head in heads if hasattr(head, layer)]
    if len(found) != 1:
        raise IntegrityError(f"the weights have {len(found)} heads with a layer {layer}, expected one; fetch others")
    return found[0]


def _data_of(graph: Graph, task: str) -> Any:
    """A graph as fairchem wants it; its edges lead from the neighbour to the centre."""
    from fairchem.core.datasets.atomic_data import AtomicData  # lazy: an optional package

    of_edges = graph.structure[graph.centers]
    spins = lowest_multiplicities(graph) if task == _MOLECULAR else torch.zeros_like(graph.atom_counts)
    nothing = torch.zeros_like(graph.numbers)
    return AtomicData(
        pos=graph.positions,
        atomic_numbers=graph.numbers,
        cell=graph.cells,
        pbc=graph.periodic,
        natoms=graph.atom_counts,
        edge_index=torch.stack([graph.neighbors, graph.centers]),
        cell_offsets=graph.shifts,
        nedges=scatter_sum(torch.ones_like(of_edges), of_edges, graph.num_structures),
        charge=torch.zeros_like(spins),
        spin=spins,
        fixed=nothing,
        tags=nothing,
        batch=graph.structure,
        sid=[""] * graph.num_structures,
        dataset=[task] * graph.num_structures,
    )


def names() -> tuple[str, ...]:
    """The teachers this file can load."""
    return tuple(_MODELS)


def traits(name: str) -> Traits:
    """What a teacher gives, known without its package."""
    model = _MODELS[name]
    return _traits(model.direct, model.mixed, 30 if model.direct else 300, model.task)


def weights(name: str) -> Weights:
    """Where the weights of a teacher are published, and where their terms are accepted."""
    model = _MODELS[name]
    page = f"https://huggingface.co/{model.repository}"
    return Weights(f"{page}/resolve/main/checkpoints/{model.file}", digest=None, gated=page)


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """A UMA or eSEN teacher. Raises MissingPackageError, IntegrityError."""
    _require(name)
    model = _MODELS[name]
    path, sha256 = find_weights(name, weights(name))
    network = open_model(path, dtype, f"fetch it again: zoo teachers fetch {name}")
    known = set(_elements_of(network, model.task))
    elements = tuple(number for number in _TASKS[model.task].elements if number in known)
    potential = FairChem(network, name, model.task, elements)
    return Teacher(
        name=name,
        potential=potential.to(device, dtype).eval(),
        weights_sha256=sha256,
        package=_package(),
        level_of_theory=_TASKS[model.task].level_of_theory,
        licence_code="MIT",
        licence_weights=_LICENCE,
        citation=model.citation,
    )


def load_file(path: Path, name: str, facts: OwnTeacher, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """A teacher from an inference checkpoint of the user's own. Raises as ``load``, ConfigError without a task."""
    _require(name)
    network = open_model(path, dtype, "save it again as an inference checkpoint of fairchem-core 2")
    tasks = sorted(network.dataset_to_tasks)
    if facts.head not in tasks and (facts.head is not None or len(tasks) != 1):
        asked = "none was chosen" if facts.head is None else f"{facts.head!r} is none of them"
        raise ConfigError(
            f"{path} has the tasks {', '.join(tasks)}, and {asked}; choose one: zoo teachers add {name} FILE ... "
            "--head TASK"
        )
    task = facts.head or tasks[0]
    potential = FairChem(network, name, task, _elements_of(network, task))
    return facts.teacher(potential.to(device, dtype).eval(), package=_package())


def _elements_of(network: Any, task: str) -> tuple[int, ...]:
    """Those with an energy of their own, or all that the network has a place for."""
    references = _task_of(network, task, "energy").element_references
    if references is None:
        return tuple(range(1, network.backbone.max_num_elements))
    found = references.element_references[: network.backbone.max_num_elements].abs() > 1e-12  # eV
    return tuple(number for number in found.nonzero()[:, 0].tolist() if number)


def _package() -> str:
    return f"fairchem-core {importlib.metadata.version('fairchem-core')}"


def _require(name: str) -> None:
    """Raises MissingPackageError."""
    with importing(name, "'fairchem-core>=2'", "fairchem"):
        importlib.import_module("fairchem.core.units.mlip_unit.utils")  # which version 1 does not have


def calculator(name: str, dtype: torch.dtype, *, hessian: bool = False) -> Any:
    """fairchem's own calculator of the same weights, for comparisons; it opens the pickle without restrictions.

    With ``hessian``, its results have the Hessian of a conservative model too. Raises as ``load`` does.
    """
    _require(name)
    from fairchem.core import FAIRChemCalculator  # lazy: an optional package
    from fairchem.core.units.mlip_unit import InferenceSettings, load_predict_unit  # lazy: an optional package

    task = _MODELS[name].task
    settings = InferenceSettings(
        activation_checkpointing=False,
        base_precision_dtype=dtype,
        predict_untrained_hessian={task} if hessian else set(),
    )
    unit = load_predict_unit(find_weights(name, weights(name)).path, settings, device="cpu")
    return FAIRChemCalculator(unit, task_name=task)
