"""Asks a teacher about structures and keeps its answers."""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Never

import torch
from ase import Atoms
from ase.data import atomic_numbers
from torch import Tensor
from tqdm import tqdm

from zoo.data.labels import (
    Label,
    LabelPlan,
    Labels,
    begin,
    finish,
    read_plan,
    shard_path,
    stored_probes,
    write_shard,
)
from zoo.data.structures import structure_digest
from zoo.distill.workers import ALONE, Workers
from zoo.errors import CapabilityError, ConfigError, DivergedError, DomainError, LabelError, ZooError
from zoo.graph import Graph, collate
from zoo.guard import stated_electrons
from zoo.neighbors import build_graph
from zoo.ops import deterministic
from zoo.packing import Item, Need, Packer, Task
from zoo.potential import Prediction, given
from zoo.recipe import LabelsSection, Precision, Recipe, loss_from
from zoo.students.gemnet_oc import GemNetOCStudentConfig, mismatch
from zoo.teachers import Teacher
from zoo.teachers.differences import MeasuredDifferences
from zoo.teachers.inputs import unknown_symbols
from zoo.teachers.noise import Differences

_SAMPLED = 8  # of so many products by differences, one is asked for at twice the step, for its error
_LOOK_SECONDS = 1.0
_LATEST_SECONDS = 90.0  # file systems keep the absence of a file in mind for a minute at most


def check_teacher(recipe: Recipe, teacher: Teacher) -> None:
    """Raises CapabilityError, before hours are spent, where a recipe wants of its teacher what it cannot give."""
    traits, loss = teacher.potential.traits, recipe.loss
    direct = not traits.conservative
    embeddings = teacher.potential.element_embeddings()
    channels = 0 if embeddings is None else embeddings.shape[1]
    wanted = recipe.student.teacher_channels
    unknown = unknown_symbols(
        [atomic_numbers[symbol] for symbol in recipe.student.elements], teacher.potential.elements
    )
    complaints = {
        "student.elements": (unknown, f"does not know {unknown}; remove what it lacks, or take another teacher"),
        "loss.energy": (
            loss_from(loss, "energy") == "teacher" and not traits.energies,
            "gives no energies; set it to 0, or loss.energy_from to dataset",
        ),
        "loss.stress": (
            loss_from(loss, "stress") == "teacher" and not traits.stress,
            "gives no stress; set it to 0, or loss.stress_from to dataset",
        ),
        "labels.extras: atomic_energies": (
            "atomic_energies" in recipe.labels.extras and not (traits.atomic_energies and traits.energies),
            "gives no energies of atoms; remove it, and set loss.atomic_energy to 0",
        ),
        "labels.extras: features": (
            "features" in recipe.labels.extras and not traits.features,
            "gives no node features; remove it, and set loss.feature to 0",
        ),
        "labels.side": (
            recipe.labels.side != "rows" and not direct,
            "has a symmetric Hessian, of one side only; leave the line out",
        ),
        "student.teacher_channels": (
            wanted not in (0, channels),
            f"has {channels or 'no'} channels in its element embedding, not {wanted}; set it to {channels}",
        ),
    }
    for line, (wrong, what) in complaints.items():
        if wrong:
            raise CapabilityError(f"{line} cannot be had: {teacher.name} {what}")
    if isinstance(recipe.student, GemNetOCStudentConfig) and (problem := mismatch(recipe.student, teacher.potential)):
        raise CapabilityError(f"{teacher.name} cannot be fine-tuned: {problem}")


def check_structures(structures: Sequence[Atoms], teacher: Teacher, *, compared: bool = False) -> None:
    """Raises DomainError for a structure with an element that the teacher lacks.

    Also, unless labels are only ``compared`` and nothing is learned from them, for one that states another charge or
    more unpaired electrons than it is asked for.
    """
    for number, atoms in enumerate(structures):
        which = f"structure {number} of {_group_name(atoms)} ({atoms.symbols})"
        if unknown := unknown_symbols(atoms.numbers.tolist(), teacher.potential.elements):
            raise DomainError(
                f"{which} has {unknown}, which {teacher.name} does not know; take a teacher that does, or leave it out"
            )
        odd = teacher.potential.traits.open_shells and bool(atoms.numbers.sum() % 2)
        problem = None if compared else stated_electrons(atoms, 0, multiplicity=2 if odd else 1)
        if problem is not None:
            raise DomainError(
                f"{which} states {problem}, of which {teacher.name} is told nothing: its labels would be those of "
                "another molecule; leave it out, as by the filter charge: 0 of a subset, or, in a file of your own, "
                "remove that from its info where the teacher means this very state"
            )


def label_plan(
    structures: Sequence[Atoms], teacher: Teacher, section: LabelsSection, seed: int, dtype: Precision
) -> LabelPlan:
    """What a folder of these labels must say of itself; a step of differences that is not known yet is measured."""
    plan = LabelPlan(
        teacher=teacher.name,
        weights_sha256=teacher.weights_sha256,
        package=teacher.package,
        level_of_theory=teacher.level_of_theory,
        dtype=dtype,
        probes=section.probes,
        probes_per_structure=section.stored_probes or None,
        side=section.side,
        extras=section.extras,
        seed=seed,
        shard_size=section.shard_size,
        structures=tuple(structure_digest(atoms) for atoms in structures),
    )
    differences = _measured(teacher, plan, structures)
    return plan if differences is None else plan.model_copy(update={"differences": differences})


def _measured(teacher: Teacher, plan: LabelPlan, structures: Sequence[Atoms]) -> Differences | None:
    """Of a teacher whose products are differences by a measured step: on the structure in the middle, unless it is."""
    potential = teacher.potential
    if not isinstance(potential, MeasuredDifferences) or plan.probes == "none" or not structures:
        return None
    if potential.differences is None:
        number = len(structures) // 2
        graph = build_graph([structures[number], structures[0]], potential.cutoff)
        with _said_of(number, structures[number]):
            potential.measure(graph, stored_probes(plan, plan.structures[number], len(structures[number]))[0])
    return potential.differences


def take_over_step(teacher: Teacher, folders: Iterable[Path]) -> None:
    """Of a teacher whose step is measured: that of the first of these folders of labels that it made, or none yet."""
    potential = teacher.potential
    if not isinstance(potential, MeasuredDifferences):
        return
    potential.differences = None
    for folder in folders:
        plan = None
        with suppress(LabelError, ConfigError):  # of which the one who opens it says more
            plan = read_plan(folder)
        same = plan is not None and (plan.teacher, plan.weights_sha256) == (teacher.name, teacher.weights_sha256)
        if plan is None or plan.differences is None or not same:
            continue
        if potential.fixed_step in (None, plan.differences.step_A):
            potential.differences = plan.differences
            return


def label_structures(
    folder: Path,
    structures: Sequence[Atoms],
    teacher: Teacher,
    plan: LabelPlan,
    *,
    forward_mode: bool = False,
    workers: Workers = ALONE,
    batched: bool | None = None,
    compared: bool = False,
) -> Labels:
    """Labels what is not labelled yet, and opens the result; of several workers each makes its share of the shards.

    ``batched`` asks the teacher about several structures of a shard at once, which changes last digits; by default on a
    GPU, where the teacher gains by it. ``compared`` is for labels that nothing is learned from: there a structure may
    state a charge or unpaired electrons, which elsewhere raise DomainError, for the teacher is not told of them. Raises
    DomainError for elements that the teacher lacks, LabelError where the folder holds labels of another plan,
    DivergedError where the teacher's answer is not finite; errors of the teacher say how many labels are kept.
    """
    check_structures(structures, teacher, compared=compared)
    missing = workers.by_main(lambda: begin(folder, plan))
    if isinstance(teacher.potential, MeasuredDifferences) and plan.differences is not None:
        teacher.potential.differences = plan.differences  # in each process, also of those that have nothing to label
    parts = {shard: structures[shard * plan.shard_size :][: plan.shard_size] for shard in missing}
    mine = workers.share(missing, [sum(_cost(atoms, plan) for atoms in part) for part in parts.values()])
    others = {shard: len(parts[shard]) for shard in set(missing) - set(mine)}
    done = len(structures) - sum(len(part) for part in parts.values())
    ask = _Labeller(teacher, plan, forward_mode, _gains(teacher) if batched is None else batched)
    with tqdm(
        total=len(structures),
        initial=done,
        desc=f"label {folder.name}",
        unit="structure",
        delay=2,
        disable=not workers.main,
    ) as bar:
        for shard in mine:
            labels = []
            with _kept(folder, {shard: len(part) for shard, part in parts.items()}, len(structures)):
                for label in ask.labels(parts[shard], shard * plan.shard_size):
                    labels.append(label)
                    bar.update()
            write_shard(folder, plan, shard, labels)
            _count_arrived(folder, others, bar)
        workers.wait(meanwhile=partial(_count_arrived, folder, others, bar) if workers.main else None)
        _count_arrived(folder, others, bar)
    workers.by_main(lambda: _finish(folder, plan, others))
    return Labels.open(folder, plan.structures)


def _gains(teacher: Teacher) -> bool:
    return teacher.batched and teacher.potential.device.type == "cuda"


@contextmanager
def _kept(folder: Path, missing: dict[int, int], total: int) -> Iterator[None]:
    """Errors of a teacher say how many structures are labelled all the same; ``missing`` are shards and their sizes."""
    try:
        yield
    except ZooError as error:
        kept = total - sum(size for shard, size in missing.items() if not shard_path(folder, shard).exists())
        raise type(error)(
            f"{error}; {kept:,} of {total:,} structures are labelled and kept in {folder}, where the same command goes "
            "on"
        ) from error


@contextmanager
def _said_of(number: int, atoms: Atoms) -> Iterator[None]:
    """Errors say which structure they are of."""
    try:
        yield
    except ZooError as error:
        raise type(error)(f"structure {number} of {_group_name(atoms)}: {error}") from error


def _cost(atoms: Atoms, plan: LabelPlan) -> int:
    """About how long a structure takes: a product of the Hessian costs a few times what forces cost."""
    products = 3 * len(atoms) if plan.probes == "dense" else plan.probes_per_structure or 0
    return len(atoms) * (1 + 3 * products)


def _count_arrived(folder: Path, others: dict[int, int], bar: "tqdm[Never]") -> None:
    """Moves the bar on by what other workers have written, and forgets it."""
    for shard in [shard for shard in others if shard_path(folder, shard).exists()]:
        bar.update(others.pop(shard))


def _finish(folder: Path, plan: LabelPlan, others: Collection[int]) -> None:
    """Ends the folder when what the other workers wrote is seen here, which a network's file system may delay."""
    waited = 0.0
    while others and (unseen := begin(folder, plan)):
        if waited >= _LATEST_SECONDS:
            raise LabelError(
                f"{shard_path(folder, unseen[0])} was written by another process and cannot be seen by the main one; "
                "give all nodes one --run folder, on a file system that they share"
            )
        time.sleep(_LOOK_SECONDS)
        waited += _LOOK_SECONDS
    finish(folder, plan)


@dataclass(frozen=True)
class _Asked(Item):
    """A structure of a batch."""

    number: int
    probes: Tensor  # (probes, atoms, 3)


@dataclass(frozen=True)
class _Labeller:
    """Asks a teacher about the structures of a shard."""

    teacher: Teacher
    plan: LabelPlan
    forward_mode: bool = False  # columns of a Jacobian one by one in forward mode
    batched: bool = False
    needs: dict[Task, Need] = field(default_factory=dict)

    def labels(self, part: Sequence[Atoms], first: int) -> Iterator[Label]:
        """In order; the first of them has the number ``first`` among all structures."""
        potential, truncation = self.teacher.potential, _Truncation()
        if self.batched and not self.forward_mode and not self.plan.has_errors:
            yield from self._in_batches(part, first)
            return
        for number, atoms in enumerate(part, start=first):
            with _said_of(number, atoms), deterministic():
                graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype, device=potential.device)
                probes = self._probes(number, atoms)
                answer = self._ask(graph, probes.to(potential.device, potential.dtype))
            label = self._label(answer, probes, number, atoms)
            if isinstance(potential, MeasuredDifferences) and self.plan.has_errors:
                with _said_of(number, atoms):
                    label = replace(label, hessian_error=truncation.error(potential, graph, label))
            yield label

    def _in_batches(self, part: Sequence[Atoms], first: int) -> Iterator[Label]:
        """Several structures a pass, as many as are fastest and fit the memory."""
        potential = self.teacher.potential

        def items() -> Iterator[_Asked]:
            for number, atoms in enumerate(part, start=first):
                with _said_of(number, atoms):
                    graph = build_graph(atoms, potential.cutoff)
                    where = f"structure {number} of {_group_name(atoms)}: "
                    yield _Asked(where, atoms, graph, number, self._probes(number, atoms))

        packer = Packer(potential, "Hessian products", self._ask_several, self.needs)
        yield from packer.answers(items())

    def _ask_several(self, batch: list[_Asked]) -> list[Label]:
        """Where one has fewer probes than another, zeros fill up."""
        potential = self.teacher.potential
        graph = collate([one.graph for one in batch]).to(potential.device, potential.dtype)
        counts, most = [one.graph.num_atoms for one in batch], max(len(one.probes) for one in batch)
        probes = graph.positions.new_zeros(most, graph.num_atoms, 3)
        for part, one in zip(torch.split(probes, counts, dim=1), batch, strict=True):
            part[: len(one.probes)] = one.probes.to(probes)
        with deterministic():
            answers = self._ask(graph, probes).split(counts)
        found = []
        for one, answer in zip(batch, answers, strict=True):
            products = given(answer.hessian_products)[: len(one.probes)]
            label = self._label(replace(answer, hessian_products=products), one.probes, one.number, one.atoms)
            found.append(label)
        return found

    def _ask(self, graph: Graph, probes: Tensor) -> Prediction:
        """All that the plan wants; columns of a Jacobian one by one in forward mode, if that is asked for."""
        potential, plan = self.teacher.potential, self.plan
        asked = None if self.forward_mode or len(probes) == 0 else probes
        features = "features" in plan.extras
        answer = potential.predict(graph, stress=True, probes=asked, side=plan.side, features=features)
        if asked is None:
            columns = potential.force_columns(graph, probes) if len(probes) else probes
            answer = replace(answer, hessian_products=columns)
        return answer.cpu()

    def _probes(self, number: int, atoms: Atoms) -> Tensor:
        return stored_probes(self.plan, self.plan.structures[number], len(atoms))

    def _label(self, answer: Prediction, probes: Tensor, number: int, atoms: Atoms) -> Label:
        """Of one structure. Raises DivergedError where a part of it is not finite."""
        extras = self.plan.extras
        label = Label(
            energy=answer.energy[0],
            forces=given(answer.forces),
            stress=given(answer.stress)[0],
            probes=probes,
            hessian_products=given(answer.hessian_products),
            atomic_energies=answer.atomic_energies if "atomic_energies" in extras else None,
            features=answer.features,
        )
        traits = self.teacher.potential.traits
        has = {"energy": traits.energies, "stress": traits.stress and bool(atoms.pbc.all())}
        for name in ("energy", "forces", "stress", "hessian_products", *extras):
            if has.get(name, True) and not torch.isfinite(getattr(label, name)).all():
                raise DivergedError(
                    f"{self.teacher.name} gives a {name} that is not finite for structure {number} of "
                    f"{_group_name(atoms)}; make that group gentler, or leave it out"
                )
        return label


@dataclass
class _Truncation:
    """The part of a product's error that falls with the step, sampled: one product of a shard in eight, the first too.

    So the sample costs two calls in sixteen at most.
    """

    value: float = 0.0  # eV/Å², of a probe whose longest atom has the length 1
    since: int = _SAMPLED  # products since the last of the sample

    def error(self, potential: MeasuredDifferences, graph: Graph, label: Label) -> Tensor:
        """() eV/Å², float64: expected of the products of a label, root mean square over their components."""
        if self.since >= _SAMPLED:
            self.value, self.since = potential.truncation(graph, label.probes[0], label.hessian_products[0]), 0
        self.since += len(label.probes)
        squares = label.probes.double().square().sum(dim=-1).amax(dim=-1)  # (probes,) of the longest atom
        return squares.mean().sqrt() * potential.error(self.value)


def _group_name(atoms: Atoms) -> str:
    """The group a structure came from, or its formula."""
    return str(atoms.info.get("group", atoms.symbols))
