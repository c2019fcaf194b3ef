import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from zoo.errors import CapabilityError, StructureError
from zoo.evaluate.elasticity import equation_of_state
from zoo.graph import Graph
from zoo.teachers.stillinger_weber import StillingerWeber


class Repulsion(StillingerWeber):
    """Pushes atoms apart at every distance."""

    def atomic_energies(self, graph: Graph) -> Tensor:
        lengths = graph.edge_vectors().norm(dim=1)
        return self.epsilon * torch.zeros(graph.num_atoms).double().index_add(0, graph.centers, lengths.pow(-2))


@pytest.mark.parametrize(("start", "cubic"), [(5.431, True), (5.0, False), (6.2, True)])
def test_stillinger_weber_silicon(start: float, cubic: bool) -> None:
    """Balamane, Halicioglu and Tiller (Phys. Rev. B 46, 2250 (1992)): 5.431 Å, 1.01 Mbar, -4.63 eV with the
    depth of Stillinger and Weber, -4.3366 eV with the one used here."""
    found = equation_of_state(StillingerWeber(), bulk("Si", a=start, cubic=cubic))
    assert found.lattice_constant_A == pytest.approx(5.431, abs=5e-4)
    assert found.bulk_modulus_GPa == pytest.approx(101.4, abs=0.5)
    assert found.energy_eV_atom == pytest.approx(-4.3366, abs=1e-4)
    assert found.lattice_constants_A[0] < found.lattice_constant_A < found.lattice_constants_A[-1]


def test_a_potential_without_a_minimum_says_so() -> None:
    with pytest.raises(CapabilityError, match=r"no minimum between lattice constants of 4\.07 and 7\.22 Å"):
        equation_of_state(Repulsion(), bulk("Si", a=5.431))


def test_an_energy_that_is_not_finite_says_so() -> None:
    potential = StillingerWeber()
    potential.epsilon.data.fill_(torch.nan)
    with pytest.raises(CapabilityError, match="not finite"):
        equation_of_state(potential, bulk("Si", a=5.431))


def test_only_cubic_crystals() -> None:
    with pytest.raises(StructureError, match="not cubic"):
        equation_of_state(StillingerWeber(), bulk("Si", "hcp", a=3.0, c=5.0))
    with pytest.raises(StructureError, match="cubic crystal"):
        equation_of_state(StillingerWeber(), Atoms("Si"))
