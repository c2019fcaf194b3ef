"""The arithmetic of scripts/compare_methods.py: who gets how many more structures, and what an interval says."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from zoo.config import parse, read_yaml
from zoo.errors import ConfigError
from zoo.recipe import FramesGroup, read_recipe

ROOT = Path(__file__).parent.parent
PLANS = sorted((ROOT / "benchmarks" / "methods").glob("*.yaml"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_methods", ROOT / "scripts" / "compare_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def group(**changes: object) -> FramesGroup:
    data = {"kind": "frames", "name": "more", "split": "train", "file": "a.xyz", "sha256": "0" * 64, "count": 10}
    return parse(FramesGroup, data | changes, "a group")


def test_part_of_a_group_spans_all_of_it(script: ModuleType) -> None:
    """Frames may grow more violent along a file: a part must not be its beginning."""
    part = script._part(group(start=3, stride=2), 0.25)
    assert (part.count, part.stride, part.start) == (2, 10, 3)
    copies = script._part(group(copies=8, displacement=[0.01, 0.1]), 0.25)
    assert (copies.count, copies.copies) == (10, 2)
    assert script._part(group(), 1.0) == group()


def test_more_structures_cost_what_products_cost(script: ModuleType, tmp_path: Path) -> None:
    plan = parse(
        script.Plan,
        {
            "recipe": "sevennet-0/yttrium-student",
            "baseline": "plain",
            "extra": [group(name=name, count=30).model_dump(exclude_none=True) for name in ("one", "two")],
            "variants": {
                "plain": {"labels": {"probes": "none"}, "loss": {"hessian": 0}},
                "probes": {"labels": {"probes_per_structure": 2}},
                "dear": {"labels": {"probes_per_structure": 40}},
                "frames": {"loss": {"hessian": 0}, "frames_for": "probes"},
                "mixed": {"labels": {"probes_per_structure": 1}, "frames_for": "probes"},
                "too many": {"frames_for": "dear", "labels": {"probes": "none"}, "loss": {"hessian": 0}},
                "too few": {"frames_for": "probes", "labels": {"probes_per_structure": 2}},
            },
        },
        "a plan",
    )
    bench = script.Bench(plan, read_recipe(plan.recipe), tmp_path, 1)
    bench.measured("label-costs", lambda: {"energy_and_forces_seconds": 2.0, "product_seconds": 3.0})
    assert script.structure_cost(bench, "frames") == 1
    assert script.structure_cost(bench, "probes") == 1 + 2 * 3 / 2
    script.training_structures = lambda *_: [None] * 10
    found = script.extra_groups(bench, "frames")  # 30 more of the 60 that there are
    assert [one["count"] for one in found] == [15, 15]
    found = script.extra_groups(bench, "mixed")  # 16 structures at 2.5 cost what 10 at 4 do
    assert [one["count"] for one in found] == [3, 3]
    with pytest.raises(ConfigError, match=r"'too many' would need 600 structures more .* 'dear' does.* hold 60"):
        script.extra_groups(bench, "too many")
    with pytest.raises(ConfigError, match="would need 0 structures more"):
        script.extra_groups(bench, "too few")


def test_an_interval_is_students(script: ModuleType) -> None:
    assert script.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert script.interval([5.0]) == "5"
    assert script.interval([]) == "-"
    assert script.interval([-10.0, -12.0, -11.0], sign=True) == "-11 ± 2.48"


def test_changes_are_paired_by_seed(script: ModuleType, tmp_path: Path) -> None:
    plan = parse(
        script.Plan,
        {
            "recipe": "sevennet-0/yttrium-student",
            "baseline": "plain",
            "variants": {"plain": {}, "better": {}, "frames": {"frames_for": "better"}},
        },
        "a plan",
    )
    bench = script.Bench(plan, read_recipe(plan.recipe), tmp_path, 1)
    errors = {"plain": (10.0, 20.0), "better": (5.0, 10.0), "frames": (4.0, 8.0)}
    results = [
        {"variant": name, "seed": seed, "error": error}
        for name, many in errors.items()
        for seed, error in enumerate(many)
    ]
    assert script._change(bench, results, "plain", "error") == ""
    assert script._change(bench, results, "better", "error") == "-50 ± 0 %"
    assert script._change(bench, results, "frames", "error") == "-20 ± 0 % (better)"


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_the_shipped_plans_fit_their_recipes(path: Path, script: ModuleType, tmp_path: Path) -> None:
    plan = read_yaml(script.Plan, path)
    bench = script.Bench(plan, read_recipe(plan.recipe), tmp_path, 1)
    for name in plan.variants:
        script.changed_recipe(bench, name)
    assert PLANS


def test_a_plan_that_names_nothing_is_refused(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"recipe": "x/y", "baseline": "none", "variants": {"plain": {}}}))
    with pytest.raises(ConfigError, match="no variant is called none"):
        read_yaml(script.Plan, path)
