from dataclasses import replace
from typing import Any

import model_folders as folders
import structures as scenes
import torch

from recipes import tiny_recipe
from zoo.artifact import DataSource, Lineage
from zoo.config import parse
from zoo.licences import Source
from zoo.package import make_config
from zoo.recipe import Lock
from zoo.teachers import load_teacher

OLD: dict[str, Any] = folders.lineage().model_dump(mode="json", exclude={"teacher_terms", "data"})


def test_a_config_says_what_its_teacher_obliges_its_users_to_repeat() -> None:
    digests = dict.fromkeys(("teacher_weights_sha256", "structures_sha256", "labels_sha256"), "2" * 64)
    lock = Lock(**digests, teacher_package="zoo", zoo="0.1.0", torch="2.6.0")
    recipe = tiny_recipe().model_copy(update={"lock": lock})
    student = scenes.tiny_painn("Si")
    teacher = load_teacher("stillinger-weber/teacher", dtype=torch.float64)
    samples: dict[str, Any] = {"train": (folders.cells(), None)}
    plain = make_config(recipe, student, teacher, samples).lineage
    assert (plain.teacher_terms, plain.data) == (None, ())
    gated = make_config(recipe, student, replace(teacher, terms="Do no harm."), samples).lineage
    assert gated.teacher_terms == "Do no harm."
    assert gated.teacher_licence_weights == teacher.licence_weights


def test_a_lineage_written_before_there_were_data_sources_still_reads() -> None:
    lineage = parse(Lineage, OLD, "config.json")
    assert lineage == folders.lineage()
    assert lineage.sources == (Source("teacher", "stillinger-weber/teacher", "CC0-1.0"),)


def test_the_sources_of_an_engine_are_its_teacher_and_its_data() -> None:
    lineage = folders.lineage(data=(DataSource(name="crystals", licence="MIT"),))
    assert lineage.sources[1:] == (Source("data", "crystals", "MIT"),)
    assert parse(Lineage, lineage.model_dump(mode="json"), "config.json") == lineage
