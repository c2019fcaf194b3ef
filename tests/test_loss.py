"""The loss, term by term, against sums written out by hand."""

import pytest
import torch
from ase import Atoms

from recipes import tiny_recipe
from zoo.data.structures import rattled
from zoo.distill.loss import Example, energy_term, loss_terms, make_batch, norm_term, weighted_sum
from zoo.neighbors import build_graph
from zoo.recipe import LossSection
from zoo.students import PaiNNConfig, build_student


@pytest.fixture(scope="module")
def student():
    config = PaiNNConfig(elements=("Si",), channels=6, layers=2, radials=4, cutoff=4.0)
    return build_student(config, torch.Generator().manual_seed(0)).double()


@pytest.fixture(scope="module")
def examples(student):
    """Cells of different sizes, each with labels that are far from what the student says."""
    recipe = tiny_recipe()
    groups = [group for group in recipe.structures.groups if group.kind == "rattled"]
    random = torch.Generator().manual_seed(1)
    made = []
    for group in groups:
        for atoms in rattled(recipe.structures.crystal, group, recipe.seed)[:2]:
            size = len(atoms)
            made.append(
                Example(
                    graph=build_graph(atoms, student.cutoff),
                    energy=torch.randn((), generator=random, dtype=torch.float64),
                    forces=torch.randn(size, 3, generator=random, dtype=torch.float64),
                    stress=torch.randn(3, 3, generator=random, dtype=torch.float64),
                    probes=torch.randn(3, size, 3, generator=random, dtype=torch.float64),
                    hessian_products=torch.randn(3, size, 3, generator=random, dtype=torch.float64),
                )
            )
    return made


def test_each_term_is_the_sum_it_says(student, examples):
    choices = [torch.tensor([index % 3]) for index in range(len(examples))]
    terms = loss_terms(
        student, make_batch(examples, choices), LossSection(energy=1.0, force=1.0, stress=1.0, hessian=1.0)
    )
    energy, force, stress, hessian = [], [], [], []
    for example, choice in zip(examples, choices, strict=True):
        alone = student.predict(example.graph, stress=True)
        dense = student.hessian(example.graph)
        energy.append(abs(alone.energy[0] - example.energy) / len(example.forces))
        force += [vector.norm() for vector in alone.forces - example.forces]
        stress.append((alone.stress[0] - example.stress).square().sum().sqrt())
        product = (dense @ example.probes[choice[0]].flatten()).reshape(-1, 3)
        hessian += [vector.norm() for vector in product - example.hessian_products[choice[0]]]
    expected = {"energy": energy, "force": force, "stress": stress, "hessian": hessian}
    for name, values in expected.items():
        torch.testing.assert_close(terms[name].detach(), torch.stack(values).mean(), msg=name)


def test_the_loss_is_the_weighted_sum(student, examples):
    weights = LossSection(energy=2.0, force=3.0, stress=5.0, hessian=7.0)
    batch = make_batch(examples, [torch.tensor([0])] * len(examples))
    terms = loss_terms(student, batch, weights)
    total = 2 * terms["energy"] + 3 * terms["force"] + 5 * terms["stress"] + 7 * terms["hessian"]
    torch.testing.assert_close(weighted_sum(terms, weights), total)


def test_a_term_of_weight_zero_is_not_computed(student, examples):
    batch = make_batch(examples, [torch.tensor([0])] * len(examples))
    assert set(loss_terms(student, batch, LossSection(energy=1.0, force=1.0, stress=0.0, hessian=0.0))) == {
        "energy",
        "force",
    }
    assert set(loss_terms(student, batch, LossSection(energy=0.0, force=1.0, stress=0.0, hessian=0.0))) == {"force"}


def test_the_gradient_of_the_loss_is_its_derivative(student, examples):
    """Central differences along one direction of all weights; catches a term that lost its history."""
    batch = make_batch(examples, [torch.tensor([1])] * len(examples))
    parameters = list(student.parameters())
    random = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in parameters]
    for name in ("energy", "force", "stress", "hessian"):
        only = LossSection(**{"energy": 0.0, "force": 1e-30, "stress": 0.0, "hessian": 0.0} | {name: 1.0})
        loss = loss_terms(student, batch, only)[name]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                for parameter, change in zip(parameters, direction, strict=True):
                    parameter += step * change
                moved = loss_terms(student, batch, only)[name].detach()
                for parameter, change in zip(parameters, direction, strict=True):
                    parameter -= step * change
            values.append(moved)
        torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-7, msg=name)


def test_a_perfect_student_has_no_loss_and_a_finite_gradient(student, examples):
    answer = student.predict(examples[0].graph, stress=True, probes=examples[0].probes)
    perfect = Example(
        graph=examples[0].graph,
        energy=answer.energy[0],
        forces=answer.forces,
        stress=answer.stress[0],
        probes=examples[0].probes,
        hessian_products=answer.hessian_products,
    )
    weights = LossSection(energy=1.0, force=1.0, stress=1.0, hessian=1.0)
    loss = weighted_sum(loss_terms(student, make_batch([perfect], [torch.arange(3)]), weights), weights)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_terms_have_the_scale_they_say():
    graph = build_graph(Atoms("Si2", positions=[[0, 0, 0], [0, 0, 2.3]]), 3.0)
    energy = energy_term(torch.tensor([3.0]), torch.tensor([1.0]), graph)
    assert energy.item() == pytest.approx(1.0)  # two atoms
    assert norm_term(torch.tensor([[3.0, 4.0, 0.0]]), torch.zeros(1, 3)).item() == pytest.approx(5.0)
