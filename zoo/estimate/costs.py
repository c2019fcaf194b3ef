"""Bytes and hours, from counts and rates."""

from zoo.artifact import DTYPES
from zoo.data.structures import perfect_crystal
from zoo.estimate.counts import Count, moving_groups
from zoo.estimate.rates import Rate
from zoo.recipe import Recipe
from zoo.run import Run
from zoo.teacher_facts import teacher_facts


def products(recipe: Recipe, count: Count) -> int | None:
    """Products of the Hessian; unknown where the structures are."""
    stored = recipe.labels.stored_probes
    if stored is None:
        return None if count.atoms is None else 3 * count.atoms
    return None if count.structures is None else stored * count.structures


def label_bytes(run: Run, count: Count) -> int | None:
    """What ``zoo.data.labels`` writes: energy, forces, stress, products, and their probes unless these are all rows."""
    if count.structures is None or count.atoms is None or count.squares is None:
        return None
    recipe = run.recipe
    labels, facts = recipe.labels, teacher_facts(recipe.teacher.name, run.handed)
    number = DTYPES[recipe.teacher.dtype].itemsize
    stored = labels.stored_probes
    probe = 4 if labels.probes == "gaussian" else 1
    kept = 9 * count.squares * number if stored is None else 3 * stored * count.atoms * (number + probe)
    each = 8 + 9 * number + 16  # energy, stress, two offsets
    atom = 3 * number + 8 * ("atomic_energies" in labels.extras)
    if "features" in labels.extras:
        if facts is None or facts.traits is None:  # of one's own, which only the loaded teacher can tell
            return None
        atom += facts.traits.features * number
    return count.structures * each + count.atoms * atom + kept


def label_hours(recipe: Recipe, count: Count, rate: Rate) -> float | None:
    """Seconds an atom times atoms: of a call for each structure and move, and of all products."""
    if rate.call is None or rate.product is None or count.atoms is None or count.squares is None:
        return None
    stored = recipe.labels.stored_probes
    rows = 3 * count.squares if stored is None else stored * count.atoms
    crystal, moves = recipe.structures.crystal, 0
    for group in moving_groups(recipe):
        assert crystal is not None  # the schema sees to it
        size = len(perfect_crystal(crystal, group.supercell, group.cell))
        moves += (group.settle + group.count * group.interval) * size
    return (rate.call * (count.atoms + moves) + rate.product * rows) / rate.atoms / 3600


def training_hours(recipe: Recipe, count: Count, steps: int | None, rate: Rate) -> float | None:
    """Of the student and, where it has one, its twin, as if each step of that cost as much."""
    if rate.step is None or steps is None or count.atoms is None or not count.structures:
        return None
    size = count.atoms / count.structures / (rate.made_up or rate.atoms)
    trainings = 2 if recipe.distils else 1
    return trainings * steps * recipe.training.batch_size * rate.step * size / 3600
