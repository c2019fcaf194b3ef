"""Asks a teacher about structures and keeps its answers."""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Never

import torch
from ase import Atoms
from torch import Tensor
from tqdm import tqdm

from zoo.data.labels import Label, LabelPlan, Labels, begin, finish, shard_path, stored_probes, write_shard
from zoo.data.structures import structure_digest
from zoo.distill.workers import ALONE, Workers
from zoo.errors import CapabilityError, DivergedError, LabelError
from zoo.graph import Graph
from zoo.neighbors import build_graph
from zoo.ops import deterministic
from zoo.potential import Prediction, given
from zoo.recipe import LabelsSection, Precision, Recipe, loss_from
from zoo.students.gemnet_oc import GemNetOCStudentConfig, mismatch
from zoo.teachers import Teacher

_LOOK_SECONDS = 1.0
_LATEST_SECONDS = 90.0  # file systems keep the absence of a file in mind for a minute at most


def check_teacher(recipe: Recipe, teacher: Teacher) -> None:
    """Raises CapabilityError, before hours are spent, where a recipe wants of its teacher what it cannot give."""
    traits, loss = teacher.potential.traits, recipe.loss
    direct = not traits.conservative
    embeddings = teacher.potential.element_embeddings()
    channels = 0 if embeddings is None else embeddings.shape[1]
    wanted = recipe.student.teacher_channels
    complaints = {
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


def label_plan(
    structures: Sequence[Atoms], teacher: Teacher, section: LabelsSection, seed: int, dtype: Precision
) -> LabelPlan:
    """What a folder of these labels must say of itself."""
    return LabelPlan(
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


def label_structures(
    folder: Path,
    structures: Sequence[Atoms],
    teacher: Teacher,
    plan: LabelPlan,
    *,
    forward_mode: bool = False,
    workers: Workers = ALONE,
) -> Labels:
    """Labels what is not labelled yet, and opens the result; of several workers each makes its share of the shards.

    Raises LabelError where the folder holds labels of another plan, DivergedError where the teacher's answer is not
    finite.
    """
    missing = workers.by_main(lambda: begin(folder, plan))
    parts = {shard: structures[shard * plan.shard_size :][: plan.shard_size] for shard in missing}
    mine = workers.share(missing, [sum(_cost(atoms, plan) for atoms in part) for part in parts.values()])
    others = {shard: len(parts[shard]) for shard in set(missing) - set(mine)}
    done = len(structures) - sum(len(part) for part in parts.values())
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
            for number, atoms in enumerate(parts[shard], start=shard * plan.shard_size):
                labels.append(_label(atoms, number, teacher, plan, forward_mode))
                bar.update()
            write_shard(folder, plan, shard, labels)
            _count_arrived(folder, others, bar)
        workers.wait(meanwhile=partial(_count_arrived, folder, others, bar) if workers.main else None)
        _count_arrived(folder, others, bar)
    workers.by_main(lambda: _finish(folder, plan, others))
    return Labels.open(folder, plan.structures)


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


def _label(atoms: Atoms, number: int, teacher: Teacher, plan: LabelPlan, forward_mode: bool) -> Label:
    potential = teacher.potential
    graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype, device=potential.device)
    probes = stored_probes(plan, plan.structures[number], len(atoms))
    with deterministic():
        answer = _ask(teacher, graph, probes.to(potential.device, potential.dtype), plan, forward_mode)
    label = Label(
        energy=answer.energy[0],
        forces=given(answer.forces),
        stress=given(answer.stress)[0],
        probes=probes,
        hessian_products=given(answer.hessian_products),
        atomic_energies=answer.atomic_energies if "atomic_energies" in plan.extras else None,
        features=answer.features,
    )
    for name in ("energy", "forces", "hessian_products", *plan.extras):
        lacking = name == "energy" and not potential.traits.energies
        if not lacking and not torch.isfinite(getattr(label, name)).all():
            raise DivergedError(
                f"{teacher.name} gives a {name} that is not finite for structure {number} of {_group_name(atoms)}; "
                "make that group gentler, or leave it out"
            )
    return label


def _ask(teacher: Teacher, graph: Graph, probes: Tensor, plan: LabelPlan, forward_mode: bool) -> Prediction:
    """All that the plan wants; columns of a Jacobian one by one in forward mode, if that is asked for."""
    potential = teacher.potential
    asked = None if forward_mode or len(probes) == 0 else probes
    answer = potential.predict(graph, stress=True, probes=asked, side=plan.side, features="features" in plan.extras)
    if asked is None:
        columns = potential.force_columns(graph, probes) if len(probes) else probes
        answer = replace(answer, hessian_products=columns)
    return answer.cpu()


def _group_name(atoms: Atoms) -> str:
    """The group a structure came from, or its formula."""
    return str(atoms.info.get("group", atoms.symbols))
