"""The loss, term by term, against sums written out by hand in float64."""

import math
from dataclasses import replace

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import nn

from zoo.distill.loss import Batch, Example, energy_term, loss_terms, make_batch, norm_term, term_count, weighted_sum
from zoo.neighbors import build_graph
from zoo.potential import Prediction
from zoo.recipe import LossSection
from zoo.students import GemNetDTConfig, PaiNNConfig, PaiNNDTConfig, build_student

ELEMENTS = ("Si", "Ge")
CONFIGS = {
    "painn": PaiNNConfig(elements=ELEMENTS, channels=6, layers=2, radials=4, cutoff=4.0),
    "painn-dt": PaiNNDTConfig(elements=ELEMENTS, channels=6, layers=2, radials=6, cutoff=4.0),
    "gemnet-dt": GemNetDTConfig(
        elements=ELEMENTS,
        blocks=1,
        atom_channels=6,
        edge_channels=6,
        triplet_channels=4,
        radial_channels=4,
        circular_channels=4,
        bilinear_channels=4,
        radials=4,
        sphericals=3,
        cutoff=3.0,
    ),
}
CONSERVATIVE = ("energy", "force", "stress", "teacher_force", "hessian", "atomic_energy", "feature")
DIRECT = ("energy", "force", "teacher_force", "gradient", "hessian", "atomic_energy", "feature")
CHANNELS = 5  # of the teacher's features
SIDES = ("rows", "columns", "symmetric")


@pytest.fixture(scope="module", params=["painn", "painn-dt"])
def student(request):
    return make_student(request.param)


def make_student(name):
    student = build_student(CONFIGS[name], torch.Generator().manual_seed(0)).double()
    student.references.copy_(torch.tensor([3.0, -2.0]))  # eV; what they stand for must not reach energies of atoms
    return student


@pytest.fixture(scope="module")
def projection():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(6, CHANNELS).double()


@pytest.fixture(scope="module")
def examples():
    """Crystals of two and eight atoms, with labels of teacher and data set far from what a student says."""
    random = torch.Generator().manual_seed(1)
    return [make_example(bulk("Si", "diamond", a=5.43, cubic=cubic), random) for cubic in (False, True, False)]


def make_example(atoms: Atoms, random: torch.Generator) -> Example:
    atoms.numbers[1::2] = 32
    atoms.positions += 0.1 * draw(random, len(atoms), 3).numpy()
    size = len(atoms)
    teacher = Prediction(
        energy=draw(random, 1),
        forces=draw(random, size, 3),
        stress=draw(random, 1, 3, 3),
        hessian_products=draw(random, 3, size, 3),
        atomic_energies=draw(random, size),
        features=draw(random, size, CHANNELS),
    )
    dataset = Prediction(energy=draw(random, 1), forces=draw(random, size, 3), stress=draw(random, 1, 3, 3))
    return Example(build_graph(atoms, 4.0), atoms, teacher, draw(random, 3, size, 3), dataset)


def draw(random, *shape):
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def terms_of(student):
    return DIRECT if student.config.direct else CONSERVATIVE


def weights_of(student, *terms, **more) -> LossSection:
    """All terms, or some; forces always weigh something, for a loss wants it."""
    return LossSection(**{"force": 1e-30} | dict.fromkeys(terms or terms_of(student), 1.0) | more)


def minus_jacobian(student, graph):
    """(3 atoms, 3 atoms) −∂F/∂r by central differences of the forces: a row for each force, a column for each move."""
    columns = []
    for coordinate in range(3 * graph.num_atoms):
        move = torch.zeros(3 * graph.num_atoms, dtype=torch.float64)
        move[coordinate] = 1e-5
        move = move.reshape(-1, 3)
        ahead, behind = (
            student.predict(graph.with_geometry(graph.positions + way * move, graph.cells)).forces for way in (1, -1)
        )
        columns.append(-(ahead - behind).flatten() / 2e-5)
    return torch.stack(columns, dim=1)


def differences(student, projection, examples, choices, side="rows", source="teacher"):
    """Of each term, what it is a mean over: a vector of differences for each structure, atom or probe of an atom."""
    found = {name: [] for name in (*CONSERVATIVE, "gradient")}
    for example, choice in zip(examples, choices, strict=True):
        teacher, graph = example.teacher, example.graph
        labels = teacher if source == "teacher" else example.dataset
        answer = student.predict(graph, stress=True, features=True, gradient=student.config.direct)
        found["energy"].append((answer.energy - labels.energy) / len(example.atoms))
        found["force"] += list(answer.forces - labels.forces)
        found["stress"].append((answer.stress[0] - labels.stress[0]).flatten())
        found["teacher_force"] += list(answer.forces - teacher.forces)
        if student.config.direct:
            found["gradient"] += list(answer.energy_gradient + labels.forces)
        constants = torch.where(graph.numbers == 14, 3.0, -2.0)
        found["atomic_energy"] += list((answer.atomic_energies - constants - teacher.atomic_energies)[:, None])
        found["feature"] += list(projection(answer.features).detach() - teacher.features)
        jacobian = minus_jacobian(student, graph)
        for probe in choice.tolist():
            vector = example.probes[probe].flatten()
            rows, columns = vector @ jacobian, jacobian @ vector
            product = {"rows": rows, "columns": columns, "symmetric": (rows + columns) / 2}[side]
            found["hessian"] += list(product.reshape(-1, 3) - teacher.hessian_products[probe])
    return found


def mean(vectors, norm, delta=0.1):
    """The mean of a norm over a list of vectors, number by number."""
    if norm == "l2":
        return sum(math.sqrt(sum(x * x for x in vector.tolist())) for vector in vectors) / len(vectors)
    one = {
        "l1": abs,
        "squared": lambda x: x * x,
        "huber": lambda x: x * x / 2 if abs(x) < delta else delta * (abs(x) - delta / 2),
    }[norm]
    numbers = [one(x) for vector in vectors for x in vector.tolist()]
    return sum(numbers) / len(numbers)


CHOICES = [torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([2, 1])]


@pytest.mark.parametrize("side", SIDES)
def test_each_term_is_the_sum_it_says(side, student, projection, examples):
    terms = loss_terms(student, make_batch(examples, CHOICES, side), weights_of(student), projection)
    expected = differences(student, projection, examples, CHOICES, side)
    assert set(terms) == set(terms_of(student))
    for name, term in terms.items():
        by_hand = mean(expected[name], "squared" if name == "feature" else "l2")
        assert term.item() == pytest.approx(by_hand, rel=1e-7), name


def test_the_sides_of_a_direct_student_differ_and_of_a_conservative_one_do_not(examples):
    for name in ("painn", "painn-dt"):
        student = make_student(name)
        rows, columns, symmetric = (
            loss_terms(student, make_batch(examples, CHOICES, side), weights_of(student, "hessian"))["hessian"].item()
            for side in SIDES
        )
        differ = len({round(value, 9) for value in (rows, columns, symmetric)})
        assert differ == (1 if name == "painn" else 3)


def test_a_direct_gemnet_has_the_same_terms(projection, examples):
    student, some = make_student("gemnet-dt"), [replace(e, graph=build_graph(e.atoms, 3.0)) for e in examples[:2]]
    expected = differences(student, projection, some, CHOICES[:2], "columns")
    terms = loss_terms(student, make_batch(some, CHOICES[:2], "columns"), weights_of(student), projection)
    for name, term in terms.items():
        by_hand = mean(expected[name], "squared" if name == "feature" else "l2")
        assert term.item() == pytest.approx(by_hand, rel=1e-6), name


@pytest.mark.parametrize("norm", ["l2", "l1", "squared", "huber"])
def test_each_norm_is_what_it_says(norm, student, projection, examples):
    names = terms_of(student)
    weights = weights_of(student, norms=dict.fromkeys(names, norm), huber_delta=0.3)
    terms = loss_terms(student, make_batch(examples, CHOICES), weights, projection)
    expected = differences(student, projection, examples, CHOICES)
    for name in names:
        assert terms[name].item() == pytest.approx(mean(expected[name], norm, 0.3), rel=1e-7), name


def test_labels_are_those_of_the_data_set_where_the_recipe_says_so(student, projection, examples):
    """Beside them the teacher's forces stay the teacher's."""
    weights = weights_of(student, energy_from="dataset", force_from="dataset", stress_from="dataset")
    terms = loss_terms(student, make_batch(examples, CHOICES), weights, projection)
    expected = differences(student, projection, examples, CHOICES, source="dataset")
    for name in terms_of(student):
        by_hand = mean(expected[name], "squared" if name == "feature" else "l2")
        assert terms[name].item() == pytest.approx(by_hand, rel=1e-7), name


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_of_each_term_is_its_derivative(name, projection, examples):
    """Central differences along one direction of all weights; catches a term that lost its history.

    From the side of the columns that is a derivative of third order, which not all operations of PyTorch have right.
    """
    student = make_student(name)
    some = [replace(example, graph=build_graph(example.atoms, student.cutoff)) for example in examples]
    parameters = [p for p in [*student.parameters(), *projection.parameters()] if p.requires_grad]
    random = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in parameters]
    cases = [(term, "rows") for term in terms_of(student)] + [("hessian", side) for side in SIDES[1:]]
    for term, side in cases:
        batch, only = make_batch(some, CHOICES, side), weights_of(student, term)
        loss = loss_terms(student, batch, only, projection)[term]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        ahead, behind = (
            moved_term(student, batch, only, projection, term, parameters, direction, step) for step in (1e-6, -1e-6)
        )
        assert slope.item() == pytest.approx((ahead - behind) / 2e-6, rel=1e-5, abs=1e-7), (term, side)
        assert abs(slope.item()) > 1e-6, (term, side)


def moved_term(student, batch, only, projection, name, parameters, direction, step):
    """A term where all weights are a step further along a direction."""
    with torch.no_grad():
        for parameter, change in zip(parameters, direction, strict=True):
            parameter += step * change
    value = loss_terms(student, batch, only, projection)[name].item()
    with torch.no_grad():
        for parameter, change in zip(parameters, direction, strict=True):
            parameter -= step * change
    return value


def test_the_term_of_features_trains_the_projection_and_the_student(student, projection, examples):
    weights = weights_of(student, "feature")
    term = loss_terms(student, make_batch(examples, CHOICES), weights, projection)["feature"]
    for module in (projection, student.embedding):
        gradients = torch.autograd.grad(term, list(module.parameters()), retain_graph=True)
        assert all(gradient.abs().max() > 1e-9 for gradient in gradients)


def test_the_loss_is_the_weighted_sum(student, projection, examples):
    numbers = dict(zip(terms_of(student), (2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0), strict=True))
    weights = LossSection(**numbers)
    terms = loss_terms(student, make_batch(examples, CHOICES), weights, projection)
    total = sum(weight * terms[name].item() for name, weight in numbers.items())
    assert weighted_sum(terms, weights).item() == pytest.approx(total, rel=1e-12)
    assert weighted_sum(terms, weights).dtype == torch.float64


def test_a_term_of_weight_zero_is_not_computed(student, examples, monkeypatch):
    asked = []
    predict = student.predict

    def listen(graph, **wanted):
        asked.append({key for key, value in wanted.items() if value is not None and value is not False})
        return predict(graph, **wanted)

    monkeypatch.setattr(student, "predict", listen)
    batch = make_batch(examples, CHOICES)
    assert set(loss_terms(student, batch, LossSection(energy=1.0, force=1.0))) == {"energy", "force"}
    assert set(loss_terms(student, batch, LossSection(teacher_force=1.0))) == {"teacher_force"}
    assert asked == [{"side", "create_graph"}] * 2


def test_terms_of_parts_make_up_the_term_of_the_whole(student, projection, examples):
    """Each part weighs as much as there is in it of what the term is a mean over."""
    weights = weights_of(student)
    whole = loss_terms(student, make_batch(examples, CHOICES), weights, projection)
    sums = dict.fromkeys(whole, 0.0)
    counts = dict.fromkeys(whole, 0)
    for part in (slice(0, 1), slice(1, 3)):
        batch = make_batch(examples[part], CHOICES[part])
        for name, term in loss_terms(student, batch, weights, projection, create_graph=False).items():
            sums[name] += term.item() * term_count(name, batch)
            counts[name] += term_count(name, batch)
    for name, term in whole.items():
        assert sums[name] / counts[name] == pytest.approx(term.item(), rel=1e-10), name


def test_a_perfect_student_has_no_loss_and_a_finite_gradient(student, examples):
    example = examples[1]
    answer = student.predict(example.graph, stress=True, probes=example.probes)
    relative = answer.atomic_energies - torch.where(example.graph.numbers == 14, 3.0, -2.0)
    perfect = replace(example, teacher=replace(answer, atomic_energies=relative))
    names = [name for name in terms_of(student) if name not in ("gradient", "feature")]
    weights = weights_of(student, *names)
    loss = weighted_sum(loss_terms(student, make_batch([perfect], [torch.arange(3)]), weights), weights)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    parameters = [p for p in student.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_batch_has_labels_of_the_data_set_only_where_all_its_structures_do(examples):
    none: Batch = make_batch([examples[0], replace(examples[1], dataset=None)], CHOICES[:2])
    assert none.dataset is None
    both = make_batch(examples[:2], CHOICES[:2])
    assert torch.equal(both.dataset.energy, torch.cat([example.dataset.energy for example in examples[:2]]))


def test_terms_have_the_scale_they_say():
    graph = build_graph(Atoms("Si2", positions=[[0, 0, 0], [0, 0, 2.3]]), 3.0)
    energy = energy_term(torch.tensor([3.0]), torch.tensor([1.0]), graph)
    assert energy.item() == pytest.approx(1.0)  # two atoms
    assert norm_term(torch.tensor([[3.0, 4.0, 0.0]]), torch.zeros(1, 3)).item() == pytest.approx(5.0)
