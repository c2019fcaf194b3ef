"""AIMNet2, the molecular potentials of the package ``aimnet`` (Anstine, Zubatyuk, Isayev, Chem. Sci. 2025, 16, 10228).

A network within 5 Å gives energies and charges of atoms; to its energy come the Coulomb energy of all pairs and D3
dispersion, both by formulas that ``aimnet`` has in plain PyTorch, so that Hessian products are exact and charges answer
to displacements. Charges are balanced over a structure, so that two molecules far apart are not two molecules, and
the energy is no sum over atoms. The cosine cutoff has one continuous derivative.

Structures are neutral; ``aimnet2-nse`` is told of one unpaired electron where the number of electrons is odd, the
others assume closed shells. Crystals, which no model was trained on, get the damped and shifted Coulomb sum within 15 Å
that ``aimnet`` takes for them. Each teacher is the first member of an ensemble of four.

Weights are tensors, numbers and a description of the layers, read by ``aimnet`` with PyTorch's restricted reader and a
closed list of classes, after their digest was found to be the one that ``aimnet`` publishes.
"""

import copy
import functools
import importlib
import importlib.metadata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor, nn

from zoo.errors import ConfigError, IntegrityError
from zoo.graph import Graph
from zoo.potential import AtomOutputs, Potential, Traits
from zoo.rows import Rows
from zoo.teachers.base import Teacher
from zoo.teachers.inputs import check_elements, lowest_multiplicities
from zoo.teachers.packages import importing
from zoo.teachers.pickles import read_pickle, unreadable
from zoo.teachers.weights import OwnTeacher, Weights, find_weights

_REACH = 15.0  # Å, of Coulomb energy in crystals and of dispersion
_FEATURES = 256  # what the last layer of the published networks says of an atom
_ADDRESS = "https://storage.googleapis.com/aimnetcentral/aimnet2v2"
_PAPER = (
    "D. M. Anstine, R. Zubatyuk, O. Isayev, Chem. Sci. 16, 10228 (2025), doi:10.1039/D4SC08572H",
    "B. Kalita, R. Zubatyuk, D. M. Anstine, J. Bergeler, M. Settels, C. Stork, S. Spicher, O. Isayev, "
    "Angew. Chem. Int. Ed. (2026), doi:10.1002/anie.202516763",
    "D. M. Anstine, R. Zubatyuk, L. Gallegos, R. Paton, O. Wiest, B. Nebgen, T. Jones, G. Gomes, S. Tretiak, "
    "O. Isayev, ChemRxiv (2025), doi:10.26434/chemrxiv-2025-n36r6",
)


@dataclass(frozen=True)
class _Model:
    """One set of weights, as the registry of ``aimnet`` lists it."""

    family: str
    file: str  # beneath the address
    sha256: str
    level_of_theory: str
    citation: str = _PAPER[0]


_MODELS = {
    "aimnet2/teacher": _Model(
        "wb97m-d3",
        "AIMNet2/aimnet2_wb97m_d3_0.pt",
        "f0f7c054539ad3261bd36f9b11c56d12f87cb723e25bea7521755bbd3ec24e28",
        "ωB97M-D3(BJ)/def2-TZVPP",
    ),
    "aimnet2-b973c/teacher": _Model(
        "b973c-d3",
        "AIMNet2/aimnet2_b973c_d3_0.pt",
        "7ec7a3db67bd3a393ad59647d4020398deeb041c07dba1c9cf212d226268e549",
        "B97-3c",
    ),
    "aimnet2-2025/teacher": _Model(
        "b973c-2025-d3",
        "AIMNet2/aimnet2_2025_b973c_d3_0.pt",
        "043ed5418a104e31f79462f8e5ebeca64a2d24422174f5d29f894d32271981b5",
        "B97-3c, more intermolecular data",
    ),
    "aimnet2-nse/teacher": _Model(
        "nse",
        "AIMNet2NSE/aimnet2nse_wb97m_0.pt",
        "b98b3449b2a3765de6a188edff9344a38cc72df75f9d9bf68f4b898a253c5864",
        "ωB97M-D3(BJ)/def2-TZVPP, unrestricted",
        _PAPER[1],
    ),
    "aimnet2-pd/teacher": _Model(
        "pd",
        "AIMNet2Pd/aimnet2-pd_0.pt",
        "93f10dd5522e187d7d6aaf3b18d54c07746f5452c2e8063cf77fd0420dc39ebd",
        "B97-3c, CPCM (THF)",
        _PAPER[2],
    ),
    "aimnet2-rxn/teacher": _Model(
        "rxn",
        "AIMNet2rxn/aimnet2_rxn_0.pt",
        "ce8bc2a4cc6fcb5ebaa1bc8897fcd75104e5a00fe86e9d5fc6a020d572174894",
        "ωB97M-D3(BJ)/def2-TZVPP (aimnet; its card says ωB97M-V/def2-TZVPP)",
    ),
}


class AIMNet2(Potential):
    """An AIMNet2 model as a zoo potential: its own layers and formulas up to the energy, zoo's derivatives of it."""

    cutoff = _REACH

    def __init__(self, calculator: Any, name: str) -> None:
        """``calculator`` is an ``AIMNet2Calculator``, of which network, Coulomb energy and dispersion are taken."""
        super().__init__()
        self.name = name
        self.model = calculator.model.requires_grad_(False)
        self.model.__dict__["_prepare_dtype"] = _as_given  # it casts to float32
        self.reach = float(calculator.cutoff)  # Å, of the network
        self.elements = tuple(sorted(calculator.metadata["implemented_species"]))
        self._references = _take_shifts(self.model)
        self.coulomb: nn.Module | None = calculator.external_coulomb
        self.screened = _screened(calculator.external_coulomb)
        self.dispersion: nn.Module | None = calculator.external_dftd3
        last = [layer for layer in self.model.mlps[-1].modules() if isinstance(layer, nn.Linear)][-1]
        self.traits = _traits(last.out_features, open_shells=calculator.is_nse)

    def atomic_energies(self, graph: Graph) -> Tensor:
        """(atoms,) eV, equal shares of the energy of each structure."""
        return self.atomic_outputs(graph).energies

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        check_elements(graph, self.elements, self.name)
        found = self.model(_data_of(graph, self.reach))
        energy = found["energy"].double()  # (structures,) eV
        crystals = graph.periodic.any(dim=1)
        if self.coulomb is not None:
            energy = energy + self._coulomb_energy(found, crystals)
        if self.dispersion is not None:
            energy = energy + self.dispersion(_without_energy(found), hessian=True)["energy"]
        share = energy / graph.atom_counts
        return AtomOutputs(share[graph.structure], features=found["aim"][:-1])

    def _coulomb_energy(self, found: dict[str, Tensor], crystals: Tensor) -> Tensor:
        """(structures,) eV, of all pairs of a molecule, damped and shifted in a crystal."""
        assert self.coulomb is not None
        assert self.screened is not None
        if not crystals.any():
            return self._energy_of(self.coulomb, found)
        screened = self._energy_of(self.screened, found)
        if crystals.all():
            return screened
        return torch.where(crystals, screened, self._energy_of(self.coulomb, found))

    @staticmethod
    def _energy_of(module: nn.Module, found: dict[str, Tensor]) -> Tensor:
        energy: Tensor = module(_without_energy(found), hessian=True)["energy"]
        return energy

    def reference_energies(self, numbers: Tensor) -> Tensor:
        """(atoms,) eV, float64: the shifts of the elements, whatever type the network is in."""
        return torch.tensor(self._references, dtype=torch.float64, device=numbers.device)[numbers]

    def element_embeddings(self) -> Tensor:
        """(elements, channels) What the network begins with, in the order of ``elements``."""
        table: Tensor = self.model.afv.weight
        return table[list(self.elements)]


def _as_given(data: dict[str, Tensor]) -> dict[str, Tensor]:
    return data


def _without_energy(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a formula adds its energy to, with nothing there yet."""
    return {key: value for key, value in found.items() if key != "energy"}


def _take_shifts(model: Any) -> tuple[float, ...]:
    """The shifts of the elements, eV by atomic number, out of the network: a float32 has no room for them."""
    keys = [key for key, layer in model.outputs.items() if type(layer).__name__ == "AtomicShift"]
    if len(keys) != 1:
        raise IntegrityError(f"the model has {len(keys)} tables of energies of elements, expected one; export it again")
    shifts: list[float] = model.outputs[keys[0]].shifts.weight[:, 0].double().tolist()
    del model.outputs[keys[0]]
    return tuple(0.0 if shift != shift else shift for shift in shifts)  # NaN stands for elements it lacks


def _screened(coulomb: Any) -> nn.Module | None:
    """The same Coulomb energy as ``aimnet`` takes it in crystals."""
    if coulomb is None:
        return None
    screened = copy.deepcopy(coulomb)
    screened.method, screened.dsf_rc = "dsf", _REACH
    of_crystals: nn.Module = screened
    return of_crystals


def _data_of(graph: Graph, reach: float) -> dict[str, Tensor]:
    """A graph as ``aimnet`` wants it: flat, with one more atom at the end, which stands for no neighbour."""
    vectors = graph.edge_vectors().detach()
    inside = (vectors.square().sum(dim=1) < reach**2).nonzero()[:, 0]
    near = graph.centers[inside], graph.neighbors[inside], graph.shifts[inside]
    last = graph.structure[-1:]
    dtype = graph.positions.dtype
    data = {
        "coord": torch.cat([graph.positions, graph.positions.new_zeros(1, 3)]),
        "numbers": torch.cat([graph.numbers, graph.numbers.new_zeros(1)]),
        "mol_idx": torch.cat([graph.structure, last]),
        "charge": graph.positions.new_zeros(graph.num_structures),
        "mult": lowest_multiplicities(graph).to(dtype),
        "cell": graph.cells,
    }
    data["nbmat"], data["shifts"] = _table(graph.num_atoms, *near)
    data["nbmat_lr"], data["shifts_lr"] = _table(graph.num_atoms, *_long_pairs(graph))
    return data


def _long_pairs(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """Centres, neighbours and shifts of all pairs of molecules, and of the edges of crystals."""
    crystals = graph.periodic.any(dim=1)
    kept = crystals[graph.structure[graph.centers]].nonzero()[:, 0]
    sizes = graph.atom_counts
    owners = torch.repeat_interleave(torch.where(crystals, torch.zeros_like(sizes), sizes)[graph.structure])
    starts = (sizes.cumsum(0) - sizes)[graph.structure[owners]]
    ones = torch.ones_like(owners)
    within = ones.cumsum(0) - 1 - _firsts(owners, graph.num_atoms)[owners]
    others = starts + within
    apart = (owners != others).nonzero()[:, 0]
    shifts = graph.shifts.new_zeros(len(apart), 3)
    return (
        torch.cat([owners[apart], graph.centers[kept]]),
        torch.cat([others[apart], graph.neighbors[kept]]),
        torch.cat([shifts, graph.shifts[kept]]),
    )


def _firsts(owners: Tensor, count: int) -> Tensor:
    """(atoms,) Where the pairs of each atom begin; owners ascend."""
    sizes = torch.bincount(owners, minlength=count)
    return sizes.cumsum(0) - sizes


def _table(atoms: int, centers: Tensor, neighbors: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """(atoms + 1, width) int64 neighbours of each atom, the last atom where there is none, and their shifts."""
    rows = Rows.of(centers, atoms)
    width = max(rows.width, 1)
    places = centers * width + (rows.places - centers * rows.width)
    table = torch.full(((atoms + 1) * width,), atoms, dtype=torch.int64, device=centers.device)
    moved = shifts.new_zeros((atoms + 1) * width, 3)
    table = table.index_copy(0, places, neighbors)
    moved = moved.index_copy(0, places, shifts)
    return table.reshape(atoms + 1, width), moved.reshape(atoms + 1, width, 3)


def names() -> tuple[str, ...]:
    """The teachers this file can load."""
    return tuple(_MODELS)


def traits(name: str) -> Traits:
    """What a teacher gives, known without its package."""
    return _traits(_FEATURES, open_shells=_MODELS[name].family == "nse")


def _traits(features: int, *, open_shells: bool) -> Traits:
    return Traits(
        smoothness=1, size_consistent=False, atomic_energies=False, features=features, open_shells=open_shells
    )


def weights(name: str) -> Weights:
    """Where the weights of a teacher are published, and their digest."""
    model = _MODELS[name]
    return Weights(f"{_ADDRESS}/{model.file}", f"sha256:{model.sha256}")


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """An AIMNet2 teacher. Raises MissingPackageError, IntegrityError."""
    _require(name)
    model = _MODELS[name]
    path = find_weights(name, weights(name)).path
    potential = AIMNet2(_open(path, model.family, f"fetch it again: zoo teachers fetch {name}"), name)
    return Teacher(
        name=name,
        potential=potential.to(device, dtype).eval(),
        weights_sha256=model.sha256,
        package=_package(),
        level_of_theory=model.level_of_theory,
        licence_code="MIT",
        licence_weights="MIT",
        citation=model.citation,
    )


def load_file(path: Path, name: str, facts: OwnTeacher, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """A teacher from a file of one's own, as ``aimnet export`` writes it. Raises as ``load``, and ConfigError."""
    if facts.head is not None:
        raise ConfigError(f"{path} is for aimnet2, whose models have one head, got {facts.head}; add it without a head")
    _require(name)
    potential = AIMNet2(_open(path, None, "export it again: aimnet export"), name)
    return facts.teacher(potential.to(device, dtype).eval(), package=_package())


def _package() -> str:
    return f"aimnet {importlib.metadata.version('aimnet')}"


def _require(name: str) -> None:
    """Raises MissingPackageError."""
    with importing(name, "aimnet", "aimnet2"):
        for module in ("aimnet.calculators", "aimnet.models.base"):
            importlib.import_module(module)


def _open(path: Path, family: str | None, remedy: str) -> Any:
    """``aimnet``'s calculator of a file, on the CPU, read by its own restricted reader. Raises IntegrityError.

    Before, it is seen that the file is whole and names nothing but tensors, whatever else the user trusts.
    """
    from aimnet.calculators import AIMNet2Calculator  # lazy: an optional package
    from aimnet.models.base import load_registry_model  # lazy: an optional package

    read_pickle(path, lambda name: None, remedy, mapped=True)
    try:
        model, metadata = load_registry_model(str(path), device="cpu")
        if metadata.get("family") is None:
            metadata["family"] = family
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where two families are loaded, as of two levels of theory
            return AIMNet2Calculator(model, device="cpu")
    except Exception as error:  # PyTorch's reader raises anything
        raise unreadable(path, error, remedy, "an AIMNet2 model") from error


def calculator(name: str, dtype: torch.dtype) -> Any:
    """The calculator of ``aimnet`` for ASE, of the same weights, for comparisons. Raises as ``load`` does."""
    _require(name)
    from aimnet.calculators import AIMNet2ASE  # lazy: an optional package

    path = find_weights(name, weights(name)).path
    opened = _open(path, _MODELS[name].family, f"run: zoo teachers fetch {name}")
    if dtype == torch.float64:
        _make_double(opened)
    found = AIMNet2ASE(opened, charge=0, mult=1)
    if dtype == torch.float64:
        found.calculate = functools.partial(_calculate_in_double, found)
    return found


def _make_double(calculator: Any) -> None:
    """Has ``aimnet``'s calculator, which makes float32 of all that it is given, compute in float64."""
    calculator._deterministic = True  # its kernels for dispersion and for crystals compute in float32
    for keys in ("keys_in", "keys_in_optional"):
        kinds = getattr(calculator, keys).items()
        setattr(calculator, keys, {key: torch.float64 if kind == torch.float32 else kind for key, kind in kinds})
    model = calculator.model.double()
    model._required_keys_dtype = [torch.float64, torch.int64, torch.float64]
    optional = model._optional_keys_dtype
    model._optional_keys_dtype = [torch.float64 if kind == torch.float32 else kind for kind in optional]
    for module in (calculator.external_coulomb, calculator.external_dftd3):
        if module is not None:
            module.double()


def _calculate_in_double(
    calculator: Any, atoms: Any = None, properties: Sequence[str] = ("energy",), changes: Sequence[str] = all_changes
) -> None:
    """As ``aimnet``'s own calculator does, which rounds positions to float32."""
    Calculator.calculate(calculator, atoms, list(properties), list(changes))
    calculator.update_tensors()
    crystal = bool(calculator.atoms.pbc.any())
    given = {
        "coord": torch.tensor(calculator.atoms.positions),
        "numbers": calculator._t_numbers,
        "charge": calculator._t_charge,
        "mult": calculator._t_mult,
    }
    if crystal:
        given |= {"cell": torch.tensor(calculator.atoms.cell.array), "pbc": torch.tensor(calculator.atoms.pbc)}
    found = calculator.base_calc(given, forces=True, stress=crystal)
    calculator.results = {"energy": found["energy"].item(), "forces": found["forces"].detach().numpy()}
    if crystal:
        calculator.results["stress"] = full_3x3_to_voigt_6_stress(found["stress"].detach().numpy())
