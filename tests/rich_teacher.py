"""Closed-form teachers that give more, or less, than Stillinger and Weber's, and structures of a data set."""

from dataclasses import replace

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.ops import polynomial_envelope, scatter_sum
from zoo.potential import AtomOutputs, Potential, Traits
from zoo.teachers import Teacher, load_teacher
from zoo.teachers.stillinger_weber import StillingerWeber


class Rich(StillingerWeber):
    """With node features and an embedding of its element."""

    traits = Traits(smoothness=100, features=5)

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        distance = graph.edge_vectors().norm(dim=-1, keepdim=True) / self.cutoff  # (edges, 1)
        waves = torch.cos(distance * torch.arange(5)) * polynomial_envelope(distance)  # (edges, 5)
        return AtomOutputs(self.atomic_energies(graph), scatter_sum(waves, graph.centers, graph.num_atoms))

    def element_embeddings(self) -> Tensor:
        return torch.tensor([[0.3, -1.2, 0.8, 0.1]], dtype=self.dtype)


class WithoutEnergies(StillingerWeber):
    """Forces alone."""

    traits = Traits(smoothness=100, energies=False, atomic_energies=False)


def teacher_of(potential: Potential) -> Teacher:
    """The closed-form teacher's papers with another potential, in float64."""
    return replace(load_teacher("stillinger-weber/teacher"), potential=potential.double().eval())


def labelled_cells(count: int, seed: int = 0) -> list[Atoms]:
    """Rattled cells of eight atoms with labels of a data set, which are near the teacher's but not the same."""
    random = np.random.default_rng(seed)
    potential = StillingerWeber().double()
    cells = []
    for _ in range(count):
        atoms = bulk("Si", "diamond", a=5.43 * random.uniform(0.98, 1.02), cubic=True)
        atoms.positions += random.normal(0, 0.08, atoms.positions.shape)
        answer = potential.predict(build_graph(atoms, potential.cutoff), stress=True)
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=answer.energy.item() - 3.0 * len(atoms),
            forces=1.1 * answer.forces.numpy() + random.normal(0, 0.05, (len(atoms), 3)),
            stress=full_3x3_to_voigt_6_stress(0.9 * answer.stress[0].numpy()),
        )
        cells.append(atoms)
    return cells
