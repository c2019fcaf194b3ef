"""What a recipe would take: data, structures, labels, bytes, hours and memory, and what of it is missing here.

It asks no network, writes nothing and takes seconds. Data that are here are counted until the time for it is up, which
is looked at between frames; a large file that has to be decompressed before its first frame is seen is left unread. A
teacher that can run here is asked about one structure, and its rate times the count is the hours; where no structure is
here, the student takes its steps on one that is made up.
"""

from dataclasses import dataclass, field

from zoo.config import read_yaml
from zoo.estimate.costs import label_bytes, label_hours, products, training_hours
from zoo.estimate.counts import SPLITS, Count, count_all, groups_of, mean_size, moving_groups, scan_all
from zoo.estimate.needs import Need, lacking, needs_of, size_text
from zoo.estimate.rates import BATCH, UNMEASURED, Rate, measured
from zoo.recipe import Recipe, Split
from zoo.run import Run, Stage

_SECTIONS: dict[Stage, tuple[str, ...]] = {
    "structures": ("structures", "seed", "teacher"),
    "labels": ("labels",),
    "train": ("student", "training", "loss", "exploration"),
    "twin": ("student", "training", "loss", "exploration"),
    "evaluation": ("evaluation",),
    "model": ("name", "purpose", "subset", "licence"),
}


@dataclass(frozen=True)
class Estimate:
    """What is known of a run before it is begun."""

    run: Run
    needs: tuple[Need, ...]
    splits: dict[Split, Count]
    products: int | None  # of the Hessian
    label_bytes: int | None
    moves: int  # steps of teacher dynamics
    steps: int | None  # of training
    rate: Rate
    label_hours: float | None
    training_hours: float | None  # of student and twin together, about
    missing: tuple[str, ...]
    standing: tuple[str, ...] = field(default=())


def estimate(run: Run, *, measure: bool = True) -> Estimate:
    """What a run would take; ``measure`` asks the teacher about one structure and the student for a few steps.

    Raises nothing that a recipe may lack here: what is missing is listed.
    """
    recipe = run.recipe
    missing = lacking(run)
    needs = needs_of(recipe, missing)
    scans = scan_all(recipe, missing)
    counts, sample = count_all(recipe, scans, missing)
    splits = {split: Count.sum([counts[group.name] for group in groups_of(recipe, split)]) for split in SPLITS}
    labelled, train = Count.sum([splits[split] for split in recipe.labelled]), splits["train"].structures
    training = recipe.training
    steps = training.steps if training.epochs is None else None if train is None else training.steps_of(train)
    rate = measured(run, sample, mean_size([*splits.values(), *counts.values()])) if measure else UNMEASURED
    if measure and sample is not None and rate.unknown:
        missing.append(f"teacher {recipe.teacher.name}: {rate.unknown}")
    return Estimate(
        run=run,
        needs=tuple(needs),
        splits=splits,
        products=products(recipe, labelled),
        label_bytes=label_bytes(run, labelled),
        moves=sum(group.settle + group.count * group.interval for group in moving_groups(recipe)),
        steps=steps,
        rate=rate,
        label_hours=label_hours(recipe, labelled, rate),
        training_hours=training_hours(recipe, Count.sum(list(splits.values())), steps, rate),
        missing=tuple(dict.fromkeys(missing)),
        standing=tuple(_standing(run)),
    )


def text(found: Estimate) -> str:
    """An estimate in a few lines."""
    run, recipe = found.run, found.run.recipe
    lines = [f"{recipe.name}: {recipe.purpose}", f"teacher {recipe.teacher.name}, run folder {run.folder}", ""]
    lines += [f"data        {need}" for need in found.needs]
    lines += [_split_line(recipe, split, count) for split, count in found.splits.items()]
    calls = Count.sum([found.splits[split] for split in recipe.labelled]).structures
    size = size_text(found.label_bytes)
    training, whose = recipe.training, "student and twin" if recipe.distils else "the student alone"
    lines += [
        f"labels      {_number(found.products)} Hessian products ({recipe.labels.probes}), {found.moves} steps of "
        "teacher dynamics",
        f"            {_number(calls)} energies with forces, {size} on disk; {_label_time(found)}",
        f"training    {_number(found.steps)} steps of {training.batch_size} structures, {whose}",
        f"            {_training_time(found)}",
        *_exploration_lines(recipe),
        f"memory      {_memory(found.rate)}",
        *(f"missing     {line}" for line in found.missing),
        "",
        *found.standing,
    ]
    return "\n".join(lines)


def _split_line(recipe: Recipe, split: Split, count: Count) -> str:
    groups = len(groups_of(recipe, split))
    atoms = "?" if count.atoms is None else str(count.atoms)
    about = "" if count.exact or count.structures is None else ", about"
    return f"{split:<11} {_number(count.structures)} structures in {groups} groups, {atoms} atoms{about}"


def _number(count: int | None) -> str:
    return f"{'?' if count is None else count:>6}"


def _hours(hours: float) -> str:
    return f"{hours * 60:.2g} minutes" if hours < 1 else f"{hours:.3g} hours"


def _label_time(found: Estimate) -> str:
    rate = found.rate
    if rate.call is None or rate.product is None:
        return f"rate unknown: {rate.unknown}"
    pace = f"{rate.call:.2g} s a call and {rate.product:.2g} s a product for {rate.atoms} atoms"
    return f"{pace}, {'?' if found.label_hours is None else _hours(found.label_hours)} in all"


def _training_time(found: Estimate) -> str:
    rate = found.rate
    if rate.step is None:
        return f"rate unknown: {rate.no_step}"
    what = f"made-up structure of {rate.made_up}" if rate.made_up else f"structure of {rate.atoms}"
    pace = f"{rate.step:.2g} s a {what} atoms"
    return f"{pace}, {'?' if found.training_hours is None else f'about {_hours(found.training_hours)}'} in all"


def _memory(rate: Rate) -> str:
    if rate.memory is None:
        return "unknown"
    whose = "a structure" if rate.step is None else f"a batch of at most {max(BATCH, rate.atoms)} atoms"
    without = ", without the teacher" if rate.call is None else ""
    return f"{rate.memory / 2**30:.2g} GiB for {whose}{without}; larger ones take more"


def _exploration_lines(recipe: Recipe) -> list[str]:
    section = recipe.exploration
    if section is None:
        return []
    return [
        f"exploration {section.rounds * section.budget:>6} structures at most, {section.budget} in each of "
        f"{section.rounds} rounds of {section.kind}, and as many trainings more"
    ]


def _standing(run: Run) -> list[str]:
    """A line a stage: whether it is done, and whether what is there was made from this recipe."""
    meaning = {"to do": "to do", "begun": "begun, will go on", "done": "done"}
    other = "made from another recipe: " + (
        "will be deleted and made anew" if run.replace else "refused, see --replace"
    )
    before = run.folder / "recipe.yaml"
    earlier = read_yaml(Recipe, before) if before.exists() else run.recipe
    lines, differs = [], False
    for stage in run.stages:
        here, there = (recipe.model_dump(include=set(_SECTIONS[stage])) for recipe in (run.recipe, earlier))
        differs = differs or here != there
        state = run.state(stage)
        lines.append(f"{stage:<11} {other if differs and state != 'to do' else meaning[state]}")
    return lines
