"""An engine made again: the lock of a recipe, and whether a locked recipe gives what its report states.

A report states the band in which its figures lie when its recipe is run again (``Bands``). Whether structures and
labels are equal bit for bit, as they are on one kind of machine with the same versions, is told separately, and so is
whether data and code are those of the lock. Times belong to a machine and are not compared.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.artifact import CONFIG, verify_manifest
from zoo.config import read_json, read_yaml
from zoo.data.labels import LabelPlan
from zoo.errors import ConfigError, LabelError, UnknownNameError
from zoo.estimate import estimate
from zoo.estimate import text as estimate_text
from zoo.evaluate.report import OLDER, QUANTITIES, Bands, Report, number
from zoo.files import sha256_file
from zoo.locate import fetch, locate, open_hub, parse
from zoo.naming import FORMS, EngineName, default_namespace
from zoo.pipeline import all_labels_digest, evaluate, read_data_record
from zoo.recipe import Lock, Recipe
from zoo.run import Run, Stage
from zoo.teachers import teacher_names
from zoo.version import __version__, code_sha256

_TIMES = ("ms_per_call",)
_LOCKED: tuple[str, ...] = ("structures", "seed", "teacher", "labels", "exploration")
_EXPLORING: tuple[str, ...] = (*_LOCKED, "student", "loss", "training")  # the student finds structures
_CODE = {True: "the same code", False: "other code", None: "code that its lock does not name"}
_DATA = {True: "the same", None: "its lock names none"}
_COMMANDS: dict[Stage, str] = {"labels": "label", "train": "train"}  # that do a stage


def lock_recipe(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """The recipe with the lock of its run, which is by default in ``runs/<family>/<engine>``.

    A finished run has one; of one that has its labels, and has trained where it explores, it is made from these. Raises
    ConfigError where the run is not so far, or is of another recipe.
    """
    run = Run.of(recipe, folder)
    stage: Stage = "labels" if recipe.exploration is None else "train"
    written = run.folder / "recipe.yaml"
    if not written.exists() or run.state(stage) != "done":
        raise ConfigError(
            f"{run.folder} has no finished {stage}, of which a lock holds the digests; run zoo {_COMMANDS[stage]} with "
            "this recipe first, or name the folder of its run with --run"
        )
    earlier = read_yaml(Recipe, written)
    sections = set(_LOCKED if recipe.exploration is None else _EXPLORING)
    for section in sorted(sections):
        if earlier.model_dump(include={section}) != recipe.model_dump(include={section}):
            raise ConfigError(
                f"{run.folder} was made from a recipe with other {section}; name the folder of this one's run with "
                f"--run, or run zoo {_COMMANDS[stage]} with this recipe"
            )
    lock = earlier.lock if run.state("model") == "done" and earlier.lock is not None else _lock_of(run)
    return recipe.model_copy(update={"lock": lock})


def _lock_of(run: Run) -> Lock:
    """The lock of a run that has its labels, by the versions that are installed now."""
    plan = read_json(LabelPlan, run.folder / "labels" / "train" / "plan.json")
    known: dict[str, Any] = {
        "teacher_weights_sha256": plan.weights_sha256,
        "teacher_package": plan.package,
        "structures_sha256": sha256_file(run.folder / "structures" / "manifest.json"),
        "labels_sha256": all_labels_digest(run),
        "data_sha256": read_data_record(run),
        "code_sha256": code_sha256(),
        "zoo": __version__,
        "torch": torch.__version__,
    }
    return Lock.model_validate(known)


@dataclass(frozen=True)
class Published:
    """What a model folder says of itself."""

    name: str  # as it was asked for
    folder: Path
    recipe: Recipe  # locked
    lock: Lock
    report: Report


@dataclass(frozen=True)
class Row:
    """One figure, as published and as it came out again, and the band that it must lie in; None was not measured."""

    engine: str
    label: str
    unit: str
    published: float | None
    found: float | None
    low: float | None = None
    high: float | None = None

    @property
    def inside(self) -> bool:
        if self.found is None or self.low is None or self.high is None:
            return False
        return self.low <= self.found <= self.high


@dataclass(frozen=True)
class Reproduction:
    """What a locked recipe gave when it was carried out again."""

    name: str
    folder: Path
    rows: tuple[Row, ...]
    bands: Bands  # of the published report
    same: dict[str, bool | None]  # structures, labels: bit for bit; machine: processor, threads, GPU and versions;
    # data, code: those of the lock, None where it does not say
    other_data: tuple[str, ...] = ()  # names of data that are not those of the lock

    @property
    def passed(self) -> bool:
        """Whether all figures lie in their bands."""
        return all(row.inside for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        rows = [asdict(row) | {"inside": row.inside} for row in self.rows]
        told = {"name": self.name, "passed": self.passed, "band": str(self.bands), "same": self.same}
        return told | {"other_data": self.other_data, "figures": rows}

    def __str__(self) -> str:
        head = f"{'':<36}{'engine':<10}{'published':>12}{'made anew':>12}   {'band':<22}"
        lines = [
            self.name,
            "",
            head,
            "-" * len(head),
            *map(_row_text, self.rows),
            "",
            str(self.bands),
            *_same_texts(self.same, self.other_data),
        ]
        outside, count = sum(not row.inside for row in self.rows), len(self.rows)
        told = f"outside the band: {outside} of {count} figures"
        lines.append(told if outside else f"all {count} figures lie in the band")
        return "\n".join(lines)


def read_published(name: str | Path, *, hub: str | None = None, namespace: str | None = None) -> Published:
    """What there is to reproduce of an engine: by name, or of a model folder or the folder of a run.

    Raises what ``locate`` does, IntegrityError for an altered folder, ConfigError where it tells too little.
    """
    found = parse(name)
    if isinstance(found, EngineName) and found.name in teacher_names():
        raise ConfigError(f"{found.name} is a teacher, which no recipe of zoo made; give a student")
    if isinstance(found, Path):
        folder = found if (found / CONFIG).is_file() else found / "model"
        if not folder.is_dir():
            raise UnknownNameError(f"there is no model folder {found}; expected {FORMS}")
    else:
        folder = fetch(locate(found, open_hub(hub), default_namespace(namespace))).folder
    verify_manifest(folder)
    for document in ("recipe.yaml", "report.json"):
        if not (folder / document).is_file():
            raise ConfigError(f"{folder} has no {document}, without which nothing can be compared; give another engine")
    recipe = read_yaml(Recipe, folder / "recipe.yaml")
    if recipe.lock is None:
        raise ConfigError(f"the recipe of {folder} has no lock; make the engine again with zoo distill, which locks it")
    return Published(str(name), folder, recipe, recipe.lock, read_json(Report, folder / "report.json"))


def run_of(published: Published, folder: Path | None = None) -> Run:
    """The run that reproduces an engine, by default in ``runs/<family>/<engine>-reproduced``.

    It is of the recipe without its lock, which would end it at the first last digit. Raises ConfigError for the folder
    of the run that the engine is of.
    """
    folder = folder or Path("runs") / f"{published.recipe.name}-reproduced"
    if (folder / "model").resolve() == published.folder.resolve():
        raise ConfigError(f"{folder} is the run that made this engine; give another --run, to make it anew there")
    return Run.of(published.recipe.model_copy(update={"lock": None}), folder)


def plan_text(published: Published, run: Run) -> str:
    """What a reproduction will do, and what is done already."""
    lock = published.lock
    return (
        f"{published.name} is made again from its locked recipe, and compared with its report. Locked to "
        f"{lock.teacher_package}, zoo {lock.zoo}, torch {lock.torch}; here are zoo {__version__} "
        f"({_CODE[_same_code(lock)]}), torch {torch.__version__}.\n"
        "It goes on where it was interrupted: run the same again.\n\n"
        f"{estimate_text(estimate(run))}"
    )


def reproduce(published: Published, run: Run) -> Reproduction:
    """Carries the recipe out, unless that is done, and compares. Raises LabelError for a teacher of other weights."""
    if run.state("evaluation") != "done":
        _check_weights(published, run.teacher.weights_sha256)
    report = evaluate(run)
    _check_weights(published, read_json(LabelPlan, run.folder / "labels" / "train" / "plan.json").weights_sha256)
    lock, manifest = published.lock, run.folder / "structures" / "manifest.json"
    data = read_data_record(run)
    other = _other_data(lock, data)
    same = {
        "data": None if data and not lock.data_sha256 else not other,
        "structures": sha256_file(manifest) == lock.structures_sha256,
        "labels": all_labels_digest(run) == lock.labels_sha256,
        "code": _same_code(lock),
        "machine": _machine(report) == _machine(published.report),
    }
    rows = tuple(compare_reports(published.report, report))
    return Reproduction(published.name, run.folder, rows, published.report.bands, same, other)


def compare_reports(published: Report, found: Report) -> Iterator[Row]:
    """All figures that either report has, but times and what is newer than the published report."""
    for quantity in QUANTITIES:
        for engine, before in published.engines.items():
            old, new = getattr(before, quantity.key), getattr(found.engines.get(engine), quantity.key, None)
            newer = before.reasons.get(quantity.key) == OLDER
            if quantity.key in _TIMES or newer or old is new is None:
                continue
            low, high = (None, None) if old is None else published.bands.of(quantity.key, old)
            yield Row(engine, quantity.label, quantity.unit, old, new, low, high)
    count = float(published.parameters)
    yield Row("student", "parameters", "", count, float(found.parameters), count, count)


def _check_weights(published: Published, weights: str) -> None:
    locked = published.lock.teacher_weights_sha256
    if weights != locked:
        raise LabelError(
            f"{published.name} is locked to weights {locked[:12]}… of {published.recipe.teacher.name}, here are "
            f"{weights[:12]}…; install {published.lock.teacher_package}"
        )


def _other_data(lock: Lock, found: dict[str, str]) -> tuple[str, ...]:
    """The names of data that only one of the two has, or with other digests; none where the lock names none."""
    names = sorted(lock.data_sha256.keys() | found.keys()) if lock.data_sha256 else []
    return tuple(name for name in names if lock.data_sha256.get(name) != found.get(name))


def _same_code(lock: Lock) -> bool | None:
    """Whether this is the code of the lock; None where that does not say."""
    return lock.code_sha256 == code_sha256() if lock.code_sha256 else None


def _machine(report: Report) -> list[Any]:
    """What decides the last digits."""
    return [*(report.hardware.get(key) for key in ("cpu", "threads", "gpu")), report.versions]


def _row_text(row: Row) -> str:
    width = "-" if row.low is None or row.high is None else f"{number(row.low)} to {number(row.high)}"
    name = f"{row.label:<22}{row.unit:<14}{row.engine:<10}"
    values = f"{number(row.published):>12}{number(row.found):>12}"
    return f"{name}{values}   {width:<22}{'' if row.inside else 'OUTSIDE'}".rstrip()


def _same_texts(same: dict[str, bool | None], other_data: tuple[str, ...]) -> Iterator[str]:
    """What is equal bit for bit, and whether it should be."""
    others = f"other data than it is locked to: {', '.join(other_data)}"
    yield f"data: {_DATA.get(same['data'], others)}"
    machine = "the same machine and versions" if same["machine"] else "another machine, or other versions"
    expected = same["machine"] and same["data"] is not False and same["code"] is not False
    for what in ("structures", "labels"):
        told = "the same, bit for bit" if same[what] else "others in their last digits or more"
        surprise = "; they should be equal there" if expected and not same[what] else ""
        yield f"{what}: {told} ({machine}, {_CODE[same['code']]}{surprise})"
