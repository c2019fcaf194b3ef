"""How far a potential is from its labels, and from those of a data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
import torch
from ase import Atoms
from torch import Tensor
from tqdm import tqdm

from zoo.data.structures import dataset_prediction
from zoo.derivatives import Side
from zoo.errors import DivergedError, LabelError
from zoo.neighbors import build_graph
from zoo.potential import Potential, Prediction
from zoo.units import GPA_PER_EV_A3, MEV_PER_EV

ATOMS_AT_ONCE = 512


@dataclass(frozen=True)
class Accuracy:
    """Mean absolute errors against the labels, and the forces themselves for a parity plot.

    A mean over forces, stress or Hessian products is over all components of all structures alike, so that a
    large structure counts for more than a small one; the mean over energies is over structures.
    """

    energy_mae_meV_atom: float | None  # None where the labels have no energy
    force_mae_meV_A: float | None  # mean over (atom, axis)
    stress_mae_GPa: float | None  # mean over the nine components of structures that have a stress
    hessian_mae_eV_A2: float | None  # mean over (probe, atom, axis) of |Hv − H'v|
    labelled_energies: np.ndarray  # (structures,) eV/atom
    energies: np.ndarray  # (structures,) eV/atom
    labelled_forces: np.ndarray  # (atoms, 3) eV/Å, empty where no label has forces
    forces: np.ndarray  # (atoms, 3) eV/Å
    structures: int
    atoms: int


@dataclass(frozen=True)
class DatasetErrors:
    """Mean absolute errors against the labels of a data set, which is at another level of theory."""

    energy_mae_meV_atom: float | None  # mean over structures; None where no composition has two of them
    force_mae_meV_A: float  # mean over (atom, axis)
    structures: int  # that have such labels


def accuracy(
    potential: Potential,
    structures: Sequence[Atoms],
    labels: Sequence[Prediction],
    probes: Sequence[Tensor] = (),
    *,
    side: Side = "rows",
    atoms_at_once: int = ATOMS_AT_ONCE,
) -> Accuracy:
    """Errors on structures, each with its label and, for Hessians, its probes (probes, atoms, 3).

    ``side`` is that of the labels, where they are of a Jacobian that is not symmetric.

    The Hessian error depends on the kind of probe. For v of random signs, an element of H·v sums a whole row
    of H: its error is the root of the summed squares of the row's errors (where they are independent), which
    hardly changes with the number of atoms, for distant atoms add nothing. For one-hot v it is the error of
    one element, which falls as 1/atoms. What the labels do not hold is None.
    Raises LabelError where labels and structures do not fit, DivergedError where a prediction is not finite.
    """
    _check(structures, labels, probes)
    predictions: list[Prediction] = []
    progress = tqdm(total=len(structures), desc="test set", unit="structure", delay=2)
    with progress:
        for chunk in _chunks(structures, probes, atoms_at_once):
            stress = labels[chunk.start].stress is not None
            predictions += _predict(potential, structures[chunk], probes[chunk], stress, side)
            progress.update(chunk.stop - chunk.start)
    _check_finite(structures, predictions, potential.traits.energies)
    return _compare(structures, labels, predictions)


def against_dataset(structures: Sequence[Atoms], energies: np.ndarray, forces: np.ndarray) -> DatasetErrors | None:
    """Errors against the labels that structures brought from their data set; None where none brought any.

    energies (structures,) eV/atom, forces (atoms, 3) eV/Å. Levels of theory differ in the zero of each element, so the
    mean difference of energies over all structures of one composition is taken away from each of them. A composition
    that occurs once would then always be right, and does not count. Raises LabelError for labels without forces.
    """
    stops = np.cumsum([len(atoms) for atoms in structures])
    offsets: dict[str, list[float]] = {}
    errors = []
    for atoms, energy, own in zip(structures, energies, np.split(forces, stops[:-1]), strict=True):
        label = dataset_prediction(atoms)
        if label is None or label.forces is None:
            continue
        errors.append(np.abs(own - label.forces.numpy()).ravel())
        offsets.setdefault(_composition(atoms), []).append(energy - label.energy.item() / len(atoms))
    if not errors:
        return None
    repeated = [np.array(many) for many in offsets.values() if len(many) > 1]
    spread = float(np.concatenate([np.abs(many - many.mean()) for many in repeated]).mean()) if repeated else np.nan
    return DatasetErrors(
        energy_mae_meV_atom=None if np.isnan(spread) else spread * MEV_PER_EV,
        force_mae_meV_A=float(np.concatenate(errors).mean()) * MEV_PER_EV,
        structures=len(errors),
    )


def _composition(atoms: Atoms) -> str:
    """The formula of the smallest whole numbers: the same for a cell and its supercell."""
    counts = atoms.symbols.formula.count()
    divisor = gcd(*counts.values())
    return " ".join(f"{symbol}{count // divisor}" for symbol, count in sorted(counts.items()))


def _compare(structures: Sequence[Atoms], labels: Sequence[Prediction], made: Sequence[Prediction]) -> Accuracy:
    counts = np.array([len(atoms) for atoms in structures])
    true_energy, energy = (np.array([p.energy.item() for p in many]) / counts for many in (labels, made))
    pairs = list(zip(labels, made, strict=True))
    forces = [(label.forces, own.forces) for label, own in pairs]
    stress = _mean_error([(label.stress, own.stress) for label, own in pairs])
    force = _mean_error(forces)
    difference = float(np.abs(energy - true_energy).mean())  # NaN where either has no energies
    return Accuracy(
        energy_mae_meV_atom=None if np.isnan(difference) else difference * MEV_PER_EV,
        force_mae_meV_A=None if force is None else force * MEV_PER_EV,
        stress_mae_GPa=None if stress is None else stress * GPA_PER_EV_A3,
        hessian_mae_eV_A2=_mean_error([(label.hessian_products, own.hessian_products) for label, own in pairs]),
        labelled_energies=true_energy,
        energies=energy,
        labelled_forces=_stacked([label for label, own in forces if label is not None]),
        forces=_stacked([own for label, own in forces if label is not None]),
        structures=len(structures),
        atoms=int(counts.sum()),
    )


def _mean_error(pairs: Sequence[tuple[Tensor | None, Tensor | None]]) -> float | None:
    """Mean absolute difference of all components; a stress without a volume is NaN and left out."""
    differences = [
        (own.cpu().double() - label.cpu().double()).flatten()
        for label, own in pairs
        if label is not None and own is not None
    ]
    if not differences:
        return None
    every = torch.cat(differences).abs()
    every = every[~every.isnan()]
    return every.mean().item() if every.numel() else None


def _stacked(tensors: Sequence[Tensor | None]) -> np.ndarray:
    arrays = [tensor.cpu().double().numpy() for tensor in tensors if tensor is not None]
    return np.concatenate(arrays) if arrays else np.zeros((0, 3))


def _predict(
    potential: Potential, structures: Sequence[Atoms], probes: Sequence[Tensor], stress: bool, side: Side
) -> list[Prediction]:
    graph = build_graph(structures, potential.cutoff, dtype=potential.dtype, device=potential.device)
    asked = bool(probes) and len(probes[0]) > 0
    joined = torch.cat(list(probes), dim=1).to(potential.device, potential.dtype) if asked else None
    prediction = potential.predict(graph, stress=stress, probes=joined, side=side).cpu()
    return prediction.split([len(atoms) for atoms in structures])


def _chunks(structures: Sequence[Atoms], probes: Sequence[Tensor], limit: int) -> Iterator[slice]:
    """Neighbouring structures with equally many probes and no more atoms than ``limit``, at least one."""
    start, atoms = 0, 0
    for index, structure in enumerate(structures):
        other = bool(probes) and probes[index].shape[0] != probes[start].shape[0]
        if index > start and (other or atoms + len(structure) > limit):
            yield slice(start, index)
            start, atoms = index, 0
        atoms += len(structure)
    yield slice(start, len(structures))


def _check(structures: Sequence[Atoms], labels: Sequence[Prediction], probes: Sequence[Tensor]) -> None:
    if not structures:
        raise LabelError("no structures to test on; give at least one")
    if len(labels) != len(structures) or len(probes) not in (0, len(structures)):
        raise LabelError(
            f"{len(structures)} structures with {len(labels)} labels and {len(probes)} sets of probes; "
            "there must be one of each for each structure"
        )
    for index, (atoms, label) in enumerate(zip(structures, labels, strict=True)):
        count = None if label.forces is None else label.forces.shape[0]
        if count not in (None, len(atoms)):
            raise LabelError(f"label {index} has {count} atoms, structure {index} has {len(atoms)}; label them again")
        if label.hessian_products is not None and probes and label.hessian_products.shape != probes[index].shape:
            raise LabelError(f"label {index} was made with other probes than those given; label it again")


def _check_finite(structures: Sequence[Atoms], predictions: Sequence[Prediction], energies: bool) -> None:
    for index, prediction in enumerate(predictions):
        parts = (prediction.energy if energies else None, prediction.forces, prediction.hessian_products)
        if not all(part is None or bool(part.isfinite().all()) for part in parts):
            raise DivergedError(
                f"the prediction for structure {index} ({structures[index].symbols}) is not finite; "
                "train the engine again"
            )
