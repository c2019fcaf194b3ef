"""ASE's calculator around a potential."""
# mypy: allow-subclassing-any

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from zoo.errors import DivergedError, DomainError
from zoo.graph import Graph
from zoo.neighbors import SkinList
from zoo.potential import Potential, Prediction

_SHOWN = 8  # elements that a message lists before it counts


class ZooCalculator(Calculator):
    """Energy (eV), forces (eV/Å) and stress (eV/Å³, Voigt order and sign of ASE) of a potential.

    ``check`` sees each structure with its graph before the potential does, and raises where it must stop. ``predict``
    answers in the potential's place, as compiled code does. Neighbours are kept while atoms move little (``SkinList``).
    Stress is computed from the first time on that it is asked for.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(
        self,
        potential: Potential,
        *,
        check: Callable[[Atoms, Graph], None] | None = None,
        predict: Callable[..., Prediction] | None = None,
    ) -> None:
        super().__init__()
        self.potential = potential
        self.check = check
        self.predict = predict
        self.neighbors = SkinList(potential.cutoff)
        self._with_stress = False

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """What ASE calls. Raises StructureError, DomainError, DivergedError."""
        super().calculate(atoms, properties, system_changes)
        self._with_stress |= "stress" in properties
        if "energy" in properties and not self.potential.traits.energies:
            raise PropertyNotImplementedError(f"{type(self.potential).__name__} gives forces alone, and no energy")
        periodic = bool(np.all(self.atoms.pbc))
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError(
                f"{self.atoms.symbols} is not periodic in all three directions, so it has no stress"
            )
        self.results = self._results(self._ask(self._with_stress and periodic))

    def _ask(self, stress: bool) -> Prediction:
        graph = self.neighbors.graph(self.atoms)
        check_elements(self.atoms, self.potential)
        if self.check is not None:
            self.check(self.atoms, graph)
        moved = graph.to(self.potential.device, self.potential.dtype)
        predict = self.predict or self.potential.predict
        prediction = predict(moved, stress=stress).cpu()
        check_finite(prediction, self.atoms, energies=self.potential.traits.energies)
        return prediction

    def _results(self, prediction: Prediction) -> dict[str, Any]:
        assert prediction.forces is not None
        energy = float(prediction.energy[0])
        forces = prediction.forces.double().numpy()
        results: dict[str, Any] = {"forces": forces}
        if self.potential.traits.energies:
            results |= {"energy": energy, "free_energy": energy}
        if prediction.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress[0].double().numpy())
        return results


def check_elements(atoms: Atoms, potential: Potential) -> None:
    """Raises DomainError for an element without parameters: ``check_domain=False`` does not help there."""
    unknown = sorted(set(atoms.numbers.tolist()) - set(potential.elements))
    if unknown:
        known, strange = elements_text(symbols_of(potential.elements)), elements_text(symbols_of(unknown))
        raise DomainError(
            f"{atoms.symbols} has {strange}, and this potential has parameters for {known} alone; "
            "choose an engine that knows all elements of the structure"
        )


def check_finite(prediction: Prediction, atoms: Atoms, *, energies: bool = True) -> None:
    """Raises DivergedError where forces, or energies that a potential gives, are not numbers."""
    parts = [prediction.energy if energies else None, prediction.forces]
    if not all(part is None or bool(part.isfinite().all()) for part in parts):
        raise DivergedError(
            f"the energy or a force of {atoms.symbols} is not finite; "
            "start from a relaxed structure, take a shorter time step, or use dtype='float64'"
        )


def symbols_of(numbers: Iterable[int]) -> list[str]:
    """Symbols of atomic numbers."""
    return [chemical_symbols[number] for number in numbers]


def elements_text(symbols: Sequence[str]) -> str:
    """A few symbols in full, many as a count."""
    if len(symbols) <= _SHOWN:
        return ", ".join(symbols)
    return f"{', '.join(symbols[:_SHOWN])}… ({len(symbols)} elements)"
