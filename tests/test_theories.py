"""What teachers say of the level of theory of their training data: one data set, one sentence."""

import pytest

from zoo.hub.catalogue import entries
from zoo.teachers import fairchem, mace, orb, sevennet, theories

STATED = (
    {name: model.theory for module in (mace, sevennet) for name, model in module._MODELS.items()}
    | {name: orb._DATA[model.data].level_of_theory for name, model in orb._MODELS.items()}
    | {name: fairchem._TASKS[model.task].level_of_theory for name, model in fairchem._MODELS.items()}
)


@pytest.mark.parametrize("name", STATED)
def test_the_catalogue_says_the_level_of_theory_that_the_adapter_says(name: str) -> None:
    assert entries()[name].level_of_theory == STATED[name]


@pytest.mark.parametrize(
    ("data", "theory"),
    [
        ("OMat24", theories.OMAT),
        ("OMol25", theories.OMOL),
        ("sAlex", theories.MPA),
        ("(MPtrj)", theories.MPTRJ),
        ("r2SCAN, MatPES", theories.MATPES_R2SCAN),
    ],
)
def test_one_data_set_has_one_level_of_theory_whoever_learnt_from_it(data: str, theory: str) -> None:
    found = {entry.level_of_theory or "" for entry in entries().values()}
    several = {said for said in found if data in said} - ({said for said in found if "Alexandria" in said} - {theory})
    assert several == {theory}
