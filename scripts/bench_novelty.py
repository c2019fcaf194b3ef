"""What the novelty of atoms is worth against the true errors of forces, in the test set and far from it; and its price.

Of each run (zoo train, or zoo distill) the student's features are fitted and calibrated as an evaluation does it, and
in other ways beside it. True forces are the teacher's, which is asked here. Writes benchmarks/novelty.md.

    .venv/bin/python scripts/bench_novelty.py runs/sevennet-0/silicon-student
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.collections import g2
from torch import Tensor
from tqdm import tqdm

from zoo.data.structures import perfect_crystal
from zoo.distill.train import read_weights
from zoo.errors import StructureError
from zoo.evaluate.environment import hardware, versions
from zoo.evaluate.novelty import novelty_figures
from zoo.evaluate.prose import markdown_table
from zoo.evaluate.report import NoveltyFigures, number
from zoo.evaluate.speed import Call, move, time_in_turns
from zoo.execution import compiled
from zoo.files import atomic_write
from zoo.neighbors import build_graph
from zoo.novelty import Described, Gaussians, NoveltyModel, calibrate, describe, fit, force_errors, threshold
from zoo.pipeline import read_structures
from zoo.potential import Potential, given
from zoo.recipe import Crystal, read_recipe
from zoo.run import Run
from zoo.students import Student, build_student

SIZES = (64, 1000)  # atoms that a pass is timed on, about
STRETCHED = 1.10  # of lengths
MOVES = (0.05, 0.10, 0.20, 0.30)  # Å, standard deviation of a coordinate
MADE = (
    "To repeat it, train each with `zoo train RECIPE --run FOLDER` (that of ethanol is "
    "`benchmarks/methods/recipes/ethanol.yaml`; `ZOO_DATA` names the folder of the frames), then:"
)


@dataclass(frozen=True)
class Case:
    """A student, what it was trained and is tried on, and who knows better."""

    name: str
    student: Student
    teacher: Potential
    crystal: Crystal | None
    train: list[Atoms]
    validation: list[Atoms]
    test: list[Atoms]

    def forces(self, structures: list[Atoms]) -> np.ndarray:
        """(atoms, 3) eV/Å The teacher's."""
        asked = tqdm(structures, desc=f"{self.name}: teacher", disable=len(structures) == 1)
        return np.concatenate([self._forces_of(atoms) for atoms in asked])

    def _forces_of(self, atoms: Atoms) -> np.ndarray:
        graph = build_graph(atoms, self.teacher.cutoff, dtype=self.teacher.dtype)
        return given(self.teacher.predict(graph).forces).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, trained")
    parser.add_argument("--repeats", type=int, default=40, help="of timed passes")
    parser.add_argument("--quick", action="store_true", help="few structures and passes, to see that it works")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = []
    for folder in arguments.runs:
        case = read_case(folder, 8 if arguments.quick else None)
        parts += section(case, 4 if arguments.quick else arguments.repeats)
    runs = " ".join(map(str, arguments.runs))
    end = [MADE, "", "```bash", f".venv/bin/python scripts/bench_novelty.py {runs}", "```", ""]
    path = Path("benchmarks/novelty.md")
    atomic_write(path, "\n".join([*head(), *parts, *end]))
    print(path.read_text(encoding="utf-8"))


def read_case(folder: Path, most: int | None) -> Case:
    run = Run.of(read_recipe(folder / "recipe.yaml"), folder)
    student = read_weights(folder / "train", build_student(run.recipe.student))
    train, validation, test = (read_structures(run, split)[:most] for split in ("train", "validation", "test"))
    crystal = run.recipe.structures.crystal
    return Case(run.recipe.name, student, run.teacher.potential, crystal, train, validation, test)


def section(case: Case, repeats: int) -> list[str]:
    validation, test = (describe(case.student, part, forces=True) for part in (case.validation, case.test))
    held, truth = case.forces(case.validation), case.forces(case.test)
    train = describe(case.student, case.train)
    model, own = calibrated(fit(train, case.student.elements), validation, held, test, truth)
    others = {
        "one covariance for all elements": calibrated(tied(train, case.student), validation, held, test, truth)[1],
        "last-layer prediction rigidity": calibrated(rigidity(train, case.student), validation, held, test, truth)[1],
        "length of the predicted force": of_force(test, truth),
    }
    size = len(model.encode()) / 1000
    return [
        f"## {case.name}",
        "",
        f"{len(case.train)} structures to train on with {len(train.numbers)} atoms, {len(case.validation)} to "
        f"calibrate with {len(validation.numbers)}, {len(case.test)} to test with {len(test.numbers)}; "
        f"{train.features.shape[1]} features, a file of {size:.0f} kB.",
        "",
        *ranking({"a Gaussian an element (zoo)": own, **others}),
        "",
        *far_away(case, model),
        "",
        *prices(case, model, repeats),
        "",
    ]


def calibrated(
    gaussians: Gaussians, validation: Described, held: np.ndarray, test: Described, truth: np.ndarray
) -> tuple[NoveltyModel, NoveltyFigures]:
    model = NoveltyModel(gaussians, calibrate(gaussians, validation, held), 0.0)
    expected = model.expected(test)
    model = replace(model, threshold_meV_A=threshold(expected, test.counts))
    return model, novelty_figures(expected, force_errors(test, truth), model.threshold_meV_A, len(test.counts))


def tied(train: Described, student: Student) -> Gaussians:
    """As Lee, Lee, Lee, Shin (NeurIPS 2018): a mean an element, and one covariance."""
    own = fit(train, student.elements)
    away = train.features - own.means[own.rows(train.numbers)].double()
    return replace(own, factors=factor(away, 1e-4).repeat(len(student.elements), 1, 1))


def rigidity(train: Described, student: Student) -> Gaussians:
    """As Bigi, Chong, Ceriotti, Grasselli (2024, arXiv 2403.02251): ``fᵀ(FᵀF + ς²)⁻¹f``, of all elements, no mean."""
    own = fit(train, student.elements)
    factors = factor(train.features, 1e-6).repeat(len(student.elements), 1, 1)
    return replace(own, means=torch.zeros_like(own.means), factors=factors)


def factor(rows: Tensor, ridge: float) -> Tensor:
    """(features, features) float32 By which rows (atoms, features) get the second moment 1."""
    moment = rows.T @ rows / len(rows)
    regular = moment + ridge * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    root: Tensor = torch.linalg.cholesky(torch.linalg.inv(regular))
    return root.float()


def of_force(test: Described, truth: np.ndarray) -> NoveltyFigures:
    """What anybody has without a score: where forces are large, so are their errors."""
    errors = force_errors(test, truth)
    lengths = np.linalg.norm(given(test.forces).numpy(), axis=1)
    scaled = lengths * np.sqrt(np.square(errors).mean() / np.square(lengths).mean())
    return novelty_figures(scaled, errors, threshold(scaled, test.counts), len(test.counts))


def ranking(found: dict[str, NoveltyFigures]) -> list[str]:
    rows = [
        (
            name,
            "-" if figures.rank_correlation is None else f"{figures.rank_correlation:.2f}",
            f"{100 * figures.coverage:.0f} %",
            number(figures.expected_rms_meV_A),
            number(figures.error_rms_meV_A),
            number(figures.threshold_meV_A),
        )
        for name, figures in found.items()
    ]
    head = ("score", "rank correlation", "within twice", "expected (meV/Å)", "true (meV/Å)", "threshold (meV/Å)")
    return [markdown_table(head, rows)]


def far_away(case: Case, model: NoveltyModel) -> list[str]:
    """Structures that the student never learned."""
    rows = []
    for name, atoms in scenes(case):
        try:
            found, truth = model.of(case.student, [atoms])[0], case.forces([atoms])
        except StructureError:
            continue
        errors = force_errors(describe(case.student, [atoms], forces=True), truth)
        told, true = (float(np.sqrt(np.square(values).mean())) for values in (found.atoms_meV_A, errors))
        verdict = "beyond" if found.beyond else "within"
        rows.append((name, number(told), number(true), number(found.largest), number(float(errors.max())), verdict))
    head = ("structure", "expected (meV/Å)", "true (meV/Å)", "largest expected", "largest true", "threshold")
    return [
        f"Structures that it never learned, all displaced by {MOVES[0]:.2f} Å or more:",
        "",
        markdown_table(head, rows),
    ]


def scenes(case: Case) -> Iterator[tuple[str, Atoms]]:
    """Each moved a little, so that no symmetry makes forces zero, and others moved more."""
    start = case.test[0] if case.crystal is None else perfect_crystal(case.crystal, (2, 2, 2))
    for distance in MOVES:
        yield f"displaced by {distance:.2f} Å", displaced(start, distance)
    for name, atoms in crystals(start) if any(start.pbc) else molecules(start):
        yield name, displaced(atoms, MOVES[0])


def crystals(start: Atoms) -> Iterator[tuple[str, Atoms]]:
    yield "stretched by 10 %", scaled(start, STRETCHED)
    yield "squeezed by 6 %", scaled(start, 0.94)
    vacancy = start.copy()
    del vacancy[0]
    yield "vacancy", vacancy
    slab = start.copy()
    slab.center(vacuum=8.0, axis=2)
    yield "slab", slab
    cluster = start.copy()
    cluster.pbc, cluster.cell = False, None
    yield "cluster, cut out", cluster
    symbols = set(start.get_chemical_symbols())
    if len(symbols) == 1:
        yield from phases(symbols.pop(), start.get_volume() / len(start))


def phases(symbol: str, volume: float) -> Iterator[tuple[str, Atoms]]:
    """Others of an element, at the same volume (Å³) an atom."""
    places = [(0, 0, 0), (0.5, 0.5, 0.5), (0, 0.5, 0.25), (0.5, 0, 0.75)]
    a = (4 * volume / 0.55) ** (1 / 3)
    yield "β-tin", Atoms([symbol] * 4, scaled_positions=places, cell=[a, a, 0.55 * a], pbc=True).repeat((2, 2, 3))
    yield "simple cubic", bulk(symbol, "sc", a=volume ** (1 / 3)).repeat(3)
    yield "face-centred cubic", bulk(symbol, "fcc", a=(4 * volume) ** (1 / 3)).repeat(3)


def molecules(first: Atoms) -> Iterator[tuple[str, Atoms]]:
    yield "stretched by 10 %", scaled(first, STRETCHED)
    two = first.copy()
    two.translate([0.0, 0.0, np.ptp(first.positions[:, 2]) + 2.5])
    yield "two of them", first + two
    known, own = set(first.get_chemical_symbols()), sorted(first.numbers)
    for name in ("CH3OH", "CH3CH2OH", "CH3OCH3", "CH3CHO", "CH3COOH", "C6H6", "H2O", "CO2"):
        if name in g2.names and set(molecule(name).get_chemical_symbols()) <= known:
            other = molecule(name)
            yield f"{name}{', the same atoms' if sorted(other.numbers) == own else ''}", other


def displaced(atoms: Atoms, distance: float) -> Atoms:
    moved = atoms.copy()
    moved.positions += np.random.default_rng(0).normal(scale=distance, size=(len(atoms), 3))
    return moved


def scaled(atoms: Atoms, by: float) -> Atoms:
    found = atoms.copy()
    found.positions *= by
    found.cell *= by
    return found


def prices(case: Case, model: NoveltyModel, repeats: int) -> list[str]:
    """A pass for novelty beside one for energies and forces, neighbours included in both."""
    rows = []
    for size in SIZES:
        start = case.test[0]
        many = max(round(size / len(start)), 1)
        times = time_in_turns(calls(case, model, [start] * many), repeats=repeats)
        rows.append((f"{many * len(start)}", *(f"{one.median_ms:.2f}" for one in times.values())))
        names = tuple(times)
    return [
        f"Milliseconds on one thread, neighbours included, median of {repeats}, in turns:",
        "",
        markdown_table(("atoms", *names), rows),
    ]


def calls(case: Case, model: NoveltyModel, structures: list[Atoms]) -> dict[str, Callable[[], Call]]:
    student, random = case.student, np.random.default_rng(0)
    code = compiled(student, "auto", structures[:1])

    def forces(predict: Callable[..., object]) -> Callable[[], Call]:
        def ready() -> Call:
            moved = [move(atoms, random) for atoms in structures]
            return lambda: predict(build_graph(moved, student.cutoff, dtype=student.dtype))

        return ready

    def novelty() -> Call:
        moved = [move(atoms, random) for atoms in structures]
        return lambda: model.of(student, moved)

    found = {"energy and forces, PyTorch": forces(student.predict)}
    if code is not None:
        found["energy and forces, compiled"] = forces(code.predict)
    return found | {"novelty": novelty}


def head() -> list[str]:
    machine, packages = hardware(), versions()
    return [
        "# Novelty, and the errors of forces",
        "",
        "How new the surroundings of an atom are to a student, told as the error of the force to be expected on it "
        "(`zoo/novelty.py`), against the true one: the length of the difference from the teacher's force. All scores "
        "are calibrated on the validation split, the last one on the test set itself, and told on the test set. "
        "Expected and true are root mean squares over atoms. "
        f"{machine['cpu']}, torch {packages['torch']}.",
        "",
    ]


if __name__ == "__main__":
    main()
