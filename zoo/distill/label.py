"""Asks a teacher about structures and keeps its answers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from ase import Atoms
from tqdm import tqdm

from zoo.data.labels import Label, LabelPlan, Labels, begin, draw_probes, finish, write_shard
from zoo.data.structures import structure_digest
from zoo.errors import DivergedError
from zoo.neighbors import build_graph
from zoo.ops import deterministic
from zoo.recipe import LabelsSection, Precision
from zoo.teachers import Teacher


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
        probes_per_structure=section.probes_per_structure,
        seed=seed,
        shard_size=section.shard_size,
        structures=tuple(structure_digest(atoms) for atoms in structures),
    )


def label_structures(folder: Path, structures: Sequence[Atoms], teacher: Teacher, plan: LabelPlan) -> Labels:
    """Labels what is not labelled yet, and opens the result.

    Raises LabelError where the folder holds labels of another plan, DivergedError where the teacher's answer is not
    finite.
    """
    missing = begin(folder, plan)
    to_do = sum(len(structures[shard * plan.shard_size :][: plan.shard_size]) for shard in missing)
    bar = tqdm(
        total=len(structures), initial=len(structures) - to_do, desc=f"label {folder.name}", unit="structure", delay=2
    )
    with bar:
        for shard in missing:
            first = shard * plan.shard_size
            batch = structures[first : first + plan.shard_size]
            labels = []
            for number, atoms in enumerate(batch, start=first):
                labels.append(_label(atoms, number, teacher, plan))
                bar.update()
            write_shard(folder, plan, shard, labels)
    finish(folder, plan)
    return Labels.open(folder, plan.structures)


def _label(atoms: Atoms, number: int, teacher: Teacher, plan: LabelPlan) -> Label:
    potential = teacher.potential
    graph = build_graph(atoms, potential.cutoff, dtype=potential.dtype, device=potential.device)
    probes = draw_probes(plan, plan.structures[number], len(atoms))
    with deterministic():
        answer = potential.predict(graph, stress=True, probes=probes.to(potential.device, potential.dtype)).cpu()
    assert answer.forces is not None
    assert answer.stress is not None
    assert answer.hessian_products is not None
    label = Label(answer.energy[0], answer.forces, answer.stress[0], probes, answer.hessian_products)
    for name in ("energy", "forces", "hessian_products"):
        if not torch.isfinite(getattr(label, name)).all():
            raise DivergedError(
                f"{teacher.name} gives a {name} that is not finite for structure {number} of {_group_name(atoms)}; "
                "make that group gentler, or leave it out"
            )
    return label


def _group_name(atoms: Atoms) -> str:
    """The group a structure came from, or its formula."""
    return str(atoms.info.get("group", atoms.symbols))
