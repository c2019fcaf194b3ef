"""Structures that state a charge or unpaired electrons: no teacher is told of them, so none labels them unnoticed."""

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from rich_teacher import teacher_of

from recipes import frames_data, frames_recipe, silicon_clusters
from zoo.config import parse
from zoo.data.frame import Frame, electrons
from zoo.data.readers import read_frames
from zoo.data.structures import bare
from zoo.data.subsets import choose
from zoo.distill.label import label_plan, label_structures
from zoo.errors import CapabilityError, DomainError
from zoo.pipeline import make_labels, read_structures
from zoo.potential import Potential, Traits
from zoo.recipe import LabelsSection, Recipe
from zoo.recipe.structures import Subset, SubsetGroup
from zoo.run import Run
from zoo.teachers import load_teacher, stated_traits
from zoo.teachers.stillinger_weber import StillingerWeber

CHARGED: list[dict[str, Any]] = [{"charge": 1}, {"total_charge": -2.0}, {"charge": "+1"}, {"charge": np.array(1)}]


class _Told(StillingerWeber):
    """As if it were told that of an odd number of electrons one is unpaired; it knows hydrogen by name."""

    traits = Traits(smoothness=100, open_shells=True)
    elements = (1, 14)


def label(folder: Path, structures: list[Atoms], potential: Potential | None = None, **options: Any) -> Any:
    teacher = (
        load_teacher("stillinger-weber/teacher", dtype=torch.float64) if potential is None else teacher_of(potential)
    )
    plan = label_plan(structures, teacher, LabelsSection(probes="none"), 7, "float64")
    return label_structures(folder, structures, teacher, plan, **options)


def stating(info: dict[str, Any]) -> list[Atoms]:
    found = silicon_clusters(3)
    found[1].info.update(info)
    return found


@pytest.mark.parametrize("info", [*CHARGED, {"spin": 3}, {"multiplicity": 2}, {"charge": "ion"}])
def test_what_states_a_charge_or_unpaired_electrons_is_refused_by_name_before_anything_is_written(
    info: dict[str, Any], tmp_path: Path
) -> None:
    words = (
        r"^structure 1 of Si5 .* states .*, of which stillinger-weber/teacher is told nothing: .*leave it out, .*\w$"
    )
    with pytest.raises(DomainError, match=words):
        label(tmp_path / "labels", stating(info))
    assert not (tmp_path / "labels").exists()


def test_initial_charges_that_add_up_to_an_ion_are_refused_and_partial_charges_are_not(tmp_path: Path) -> None:
    structures = silicon_clusters(2)
    structures[0].set_initial_charges([0.4, -0.1, -0.1, -0.1, -0.1])
    assert len(label(tmp_path / "partial", structures)) == 2
    structures[1].set_initial_charges([0.2] * 5)
    with pytest.raises(DomainError, match=r"structure 1 .* a charge of \+1 e where 0 e is expected"):
        label(tmp_path / "ion", structures)


@pytest.mark.parametrize("info", [{}, {"charge": 0, "spin": 1}, {"spin": 0}, {"total_charge": 0.0}, {"charge": None}])
def test_what_states_that_it_is_neutral_is_labelled(info: dict[str, Any], tmp_path: Path) -> None:
    assert len(label(tmp_path, stating(info))) == 3


def test_one_unpaired_electron_of_an_odd_number_is_for_a_teacher_that_is_told_of_it(tmp_path: Path) -> None:
    radical = Atoms("SiH", [[0, 0, 0], [0, 0, 2.3]], info={"spin": 2})
    even = Atoms("SiH2", [[0, 0, 0], [0, 0, 2.3], [0, 2.3, 0]], info={"spin": 2})
    quartet = Atoms("SiH", [[0, 0, 0], [0, 0, 2.3]], info={"spin": 4})
    assert len(label(tmp_path / "radical", [radical], _Told())) == 1
    for number, refused in enumerate((even, quartet)):
        with pytest.raises(DomainError, match="states the spin multiplicity"):
            label(tmp_path / str(number), [refused], _Told())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gfn2-xtb/teacher", True),
        ("aimnet2-nse/teacher", True),
        ("aimnet2/teacher", False),  # its network has one channel of charges, and takes no multiplicity
        ("uma-s-1p1/omol-teacher", True),
        ("uma-s-1p1/omat-teacher", False),
        ("orb-v3-conservative-omol/teacher", True),
        ("orb-v3-conservative-inf-omat/teacher", False),
        ("mace-off23-small/teacher", False),
        ("sevennet-0/teacher", False),
    ],
)
def test_a_teacher_says_whether_it_is_told_of_unpaired_electrons(name: str, told: bool) -> None:
    traits = stated_traits(name)
    assert traits is not None
    assert traits.open_shells == told


@pytest.mark.xtb
def test_a_radical_is_labelled_by_a_program_as_the_doublet_that_it_states(tmp_path: Path) -> None:
    from tblite.ase import TBLite

    radical = molecule("CH3")
    radical.info["spin"] = 2
    teacher = load_teacher("gfn2-xtb/teacher", dtype=torch.float64)
    plan = label_plan([radical], teacher, LabelsSection(probes="none"), 7, "float64")
    (found,) = label_structures(tmp_path, [radical], teacher, plan)
    radical.calc = TBLite(method="GFN2-xTB", verbosity=0, multiplicity=2)
    assert found.energy.item() == pytest.approx(radical.get_potential_energy(), rel=1e-6)


# --- from a file, or a data set, to the teacher ------------------------------------------------------------


@pytest.mark.parametrize("displaced", [False, True])
def test_a_frame_of_a_file_keeps_its_charge_up_to_the_teacher_who_refuses_it_before_it_labels_others(
    displaced: bool, tmp_path: Path
) -> None:
    clusters = silicon_clusters(12)
    clusters[7].info["charge"] = 1
    data = frames_data(tmp_path, clusters)
    if displaced:
        data["structures"]["groups"][1]["displacement"] = [0.01, 0.02]
    run = Run.of(parse(Recipe, data, "a recipe"), tmp_path / "run")
    with pytest.raises(
        DomainError, match=r"^structure 1 of held \(Si5\) states a charge of \+1 e .*charge: 0 of a subs"
    ):
        make_labels(run)
    assert not list((tmp_path / "run").glob("labels/*/shard-*")), "hours, of a larger run"
    assert [atoms.info.get("charge") for atoms in read_structures(run, "validation")] == [None, 1]


def test_where_nothing_is_learned_from_the_teacher_ions_are_compared_with_it(tmp_path: Path) -> None:
    clusters = silicon_clusters(12)
    for atoms in clusters:
        atoms.info["charge"] = 1
    loss = {"energy": 5, "force": 100, "energy_from": "dataset", "force_from": "dataset"}
    recipe = frames_recipe(tmp_path, clusters=clusters, loss=loss)
    assert not recipe.distils
    assert (make_labels(Run.of(recipe, tmp_path / "run")) / "test" / "manifest.json").exists()


def test_structures_that_state_nothing_are_written_as_ever(tmp_path: Path) -> None:
    """Or recipes that are locked to their structures would hold no longer."""
    plain, told = silicon_clusters(12), silicon_clusters(12)
    for atoms in told:
        atoms.info.update(charge=0, spin=1)
        atoms.set_initial_charges([0.4, -0.1, -0.1, -0.1, -0.1])
    files = []
    for name, clusters in (("plain", plain), ("told", told)):
        (tmp_path / name).mkdir()
        run = Run.of(frames_recipe(tmp_path / name, clusters=clusters), tmp_path / name / "run")
        make_labels(run)
        files.append((run.folder / "structures" / "learned.extxyz").read_bytes())
    assert files[0] == files[1]


def test_the_charge_of_a_data_set_s_frame_goes_with_its_structure() -> None:
    own, division = {"path": "x", "format": "extxyz"}, {"by": "frame", "train": 1, "validation": 0, "test": 0}
    subset = parse(Subset, {"own": own, "division": division}, "a subset")
    group = parse(SubsetGroup, {"kind": "subset", "name": "g", "split": "train", "subset": "some"}, "a group")
    frames = [
        Frame(bare(atoms), f"frame {charge}", charge=charge)
        for atoms, charge in zip(silicon_clusters(3), (None, 0, -1), strict=True)
    ]
    (found,) = choose(subset, [group], 7, frames).values()
    assert [electrons(atoms) for atoms in found] == [{}, {}, {"charge": -1}]


def test_readers_keep_what_a_frame_states(tmp_path: Path) -> None:
    ion = bare(silicon_clusters(1)[0])
    ion.info.update(charge=1, spin=2, config_type="any")
    ase.io.write(tmp_path / "ion.extxyz", ion)
    (frame,) = read_frames(tmp_path / "ion.extxyz", "extxyz")
    assert electrons(frame.atoms) == {"charge": 1, "spin": 2}
    ion.info.clear()
    ion.set_initial_charges([0.2] * 5)
    ase.io.write(tmp_path / "ion.db", ion)
    (frame,) = read_frames(tmp_path / "ion.db", "ase-db")
    assert electrons(frame.atoms) == {"charge": 1}


@pytest.mark.parametrize("learned", [True, False])
def test_an_element_that_the_teacher_lacks_is_refused_before_anything_is_labelled(
    learned: bool, tmp_path: Path
) -> None:
    clusters = silicon_clusters(12)
    clusters[9].numbers[0] = 84
    loss = {} if learned else {"energy_from": "dataset", "force_from": "dataset", "hessian": 0}
    changes = {f"loss__{key}": value for key, value in loss.items()}
    recipe = frames_recipe(tmp_path, clusters=clusters, student__elements=["Si", "Po"], **changes)
    assert recipe.distils == learned
    with pytest.raises(
        CapabilityError, match=r"^student\.elements cannot be had: .* does not know Po; remove what it l"
    ):
        make_labels(Run.of(recipe, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("labels/*/shard-*"))
