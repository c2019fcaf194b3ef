"""A recipe begun from a file of frames: what they hold, how they are divided, and a text with comments to change."""

import json
import math
import os
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import yaml
from ase import Atoms
from ase.data import atomic_numbers

from zoo.data.frame import Frame
from zoo.data.readers import read_frames
from zoo.data.store import DATA_FOLDERS
from zoo.data.structures import data_digest
from zoo.data.subsets import group_key, split_of
from zoo.errors import ConfigError, UnknownNameError, ZooWarning
from zoo.files import atomic_path
from zoo.licences import LICENCES, TERMS, Source, check_terms
from zoo.naming import ENGINE_FORM, is_engine_name
from zoo.potential import Traits
from zoo.recipe import Division, OwnData, Split
from zoo.recipe_check import check_recipe_file
from zoo.teacher_facts import TeacherFacts, teacher_facts, why_not
from zoo.teachers import is_teacher_name, no_teacher

SPLITS: tuple[Split, ...] = get_args(Split)

# Teachers that a recipe asks in float64: one computes so in any case, and a closed form is cheap.
_IN_FLOAT64 = ("gfn2-xtb/teacher", "stillinger-weber/teacher", "stillinger-weber/direct-teacher")

_LABELS = ("energy", "forces", "stress")
_MANY = {"molecule": "molecules", "material": "materials", "trajectory": "trajectories"}
_GROUPS = {"molecule": 10, "material": 10, "trajectory": 5}  # what a division may be by, and of how many at least
_PERIODIC = ("not periodic", "periodic in one direction", "periodic in two directions", "periodic")
_NO_ATOMS = Atoms()
_MOST = {"train": 1000, "validation": 200, "test": 200}  # frames of a split that a first recipe labels
_STEPS = ((200, 2000), (500, 4000), (_MOST["train"], 8000))  # for so many training structures so many steps
_FEW = 20  # groups: with fewer, validation and test get a larger part
_SALTS = 200  # that are tried
_ENOUGH = 0.7  # of its part: what each split should have at least
_SUFFIXES = {
    ".extxyz": "extxyz",
    ".xyz": "extxyz",
    ".db": "ase-db",
    ".aselmdb": "lmdb",
    ".lmdb": "lmdb",
    ".npz": "sgdml",
    ".yaml": "phonopy",
    ".yml": "phonopy",
}
_WIDTH = 120  # columns that a list of elements is filled to
_NAMED = 10  # elements: so many are named in a purpose, more are counted
_COMPRESSED = (".gz", ".bz2", ".xz")
OWN_FORMATS: tuple[str, ...] = get_args(OwnData.model_fields["format"].annotation)
_EVALUATED = {
    True: "dynamics starts from a test frame; give structures.crystal to have phonons and a lattice constant too",
    False: "dynamics starts from a test frame",
}

_TEMPLATE = """\
# {teacher} teaches a small PaiNN what is in {file}. Written by zoo recipe new; it is yours to change.
# Units: eV, Å, fs, K. Check it with: zoo recipe check {output}; run it with: zoo distill {output}

format: 1
name: {name}
# What it is for, in your words: it stands first in the card.
purpose: {purpose}
subset: {subset}
licence: {licence}  # of the student; its teacher's weights are {teacher_licence}
seed: 2026

teacher:
  name: {teacher}
  dtype: {dtype}

structures:
{data}
  subsets:
    own:
      own:
        path: {path}{path_comment}
        format: {format}
        sha256: {sha256}
{filters}      division:  # {division_comment}
        by: {by}
{block}        train: {train}
        validation: {validation}
        test: {test}
        salt: {salt}  # another salt divides otherwise
      expected: {expected}  # for estimates where the file is not at hand
  groups:
{groups}
labels:  # what the teacher is asked beside energy, forces and stress: products of its Hessian with random vectors
  probes: rademacher
  probes_per_structure: {probes}
  shard_size: 8  # structures a file: a run that is killed keeps whole files; 1 where the teacher takes minutes

student:
  architecture: painn
{elements}
  channels: 64
  layers: 2
  radials: 16
  cutoff: 5.0

loss:  # weights of the terms; {labels_comment}
{weights}  probes_per_step: 1

training:
  steps: {steps}  # for {structures} structures; more where the validation errors still fall at the end
  batch_size: 8
  learning_rate: 3e-3
  final_learning_rate: 1e-5
  warmup_steps: 50
  weight_decay: 1e-5
  ema_decay: 0.995
  clip_norm: 10
  log_every: 10
  validate_every: 250
  checkpoint_every: 100
  dtype: float32

evaluation:  # {evaluation_comment}
  initial_temperature: {temperature}
  dynamics_timestep: {timestep}
  dynamics_steps: {dynamics_steps}
  teacher_dynamics_steps: {teacher_dynamics_steps}
  timing_repeats: 20
  timing_threads: 2
"""


@dataclass
class Survey:
    """What a file of frames holds, counted frame by frame."""

    frames: list[Frame] = field(default_factory=list)  # without their atoms
    elements: set[str] = field(default_factory=set)
    sizes: set[int] = field(default_factory=set)
    atoms: int = 0  # of all frames
    formulas: set[str] = field(default_factory=set)
    periodic: set[tuple[bool, ...]] = field(default_factory=set)
    labelled: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_LABELS, 0))  # frames, by label
    strange: int = 0  # frames that were left out for an element that the teacher does not know
    unknown: set[str] = field(default_factory=set)

    def see(self, frame: Frame, known: set[str]) -> None:
        symbols = set(frame.atoms.get_chemical_symbols())
        if not symbols <= known:
            self.strange += 1
            self.unknown |= symbols - known
            return
        self.frames.append(replace(frame, atoms=_NO_ATOMS))
        self.elements |= symbols
        self.sizes.add(len(frame.atoms))
        self.atoms += len(frame.atoms)
        self.formulas.add(frame.atoms.get_chemical_formula())
        self.periodic.add(tuple(bool(axis) for axis in frame.atoms.pbc))
        results = {} if frame.atoms.calc is None else frame.atoms.calc.results
        for label in _LABELS:
            self.labelled[label] += results.get(label) is not None

    @property
    def crystals(self) -> bool:
        """Whether the frames are periodic in all three directions."""
        return all(next(iter(self.periodic)))

    @property
    def symbols(self) -> list[str]:
        """The elements, in the order of their atomic numbers."""
        return sorted(self.elements, key=lambda symbol: int(atomic_numbers[symbol]))

    def lines(self) -> list[str]:
        """What was found, for people."""
        sizes = f"{min(self.sizes)}" if len(self.sizes) == 1 else f"{min(self.sizes)} to {max(self.sizes)}"
        labels = [f"{label} of {count}" for label, count in self.labelled.items() if count]
        names = {key: len({getattr(frame, key) for frame in self.frames} - {None}) for key in _GROUPS}
        named = [f"{count} {key if count == 1 else _MANY[key]}" for key, count in names.items() if count]
        kinds = sorted(_PERIODIC[sum(axes)] for axes in self.periodic)
        return [
            f"{len(self.frames)} frames of {sizes} atom{'' if sizes == '1' else 's'}, {', '.join(kinds)}",
            f"{len(self.formulas)} composition{'s' * (len(self.formulas) > 1)} of {', '.join(self.symbols)}",
            f"labels: {', '.join(labels) or 'none'}",
            f"names: {', '.join(named) or 'none, of molecules, materials or trajectories'}",
        ]


@dataclass(frozen=True)
class Begun:
    """A recipe that was written, and what there is to say of it."""

    path: Path
    found: list[str]  # what the file of frames holds
    sides: dict[Split, int]  # frames


def new_recipe(
    name: str,
    data: Path,
    teacher: str,
    *,
    output: Path | None = None,
    format: str | None = None,
    data_licence: str | None = None,
) -> Begun:
    """Writes a complete recipe with comments for frames of one's own, by default to ``<engine>.yaml``.

    Frames with elements that the teacher does not know are left out, with a warning. Raises ConfigError for a name
    that no engine may have, a file that exists, and frames that no recipe can be made of; UnknownNameError for an
    unknown teacher or file; what the reader of the format raises.
    """
    output = output or Path(f"{name.partition('/')[2]}.yaml")
    _check_request(name, data, output)
    asked = _known_teacher(teacher)
    form = format or format_of(data)
    survey = take_survey(data, form, set(asked.elements), teacher)
    division, sides = choose_division(survey.frames)
    parts = {
        "name": name,
        "output": _text(str(output))[1:-1],
        "file": _text(data.name)[1:-1],
        "teacher": teacher,
        "teacher_licence": asked.licence_weights,
        "format": form,
        **_data_parts(data, survey, data_licence),
        **_division_parts(division, sides),
        **_learning_parts(asked, survey, sides),
        **_naming_parts(name, data, survey, [asked.licence_weights, *filter(None, [data_licence])]),
    }
    _write(output, _TEMPLATE.format(**parts))
    return Begun(output, survey.lines(), sides)


def _check_request(name: str, data: Path, output: Path) -> None:
    """Raises ConfigError and UnknownNameError for names that cannot be."""
    if not is_engine_name(name):
        raise ConfigError(f"{name!r} is no name for an engine; {ENGINE_FORM}")
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output {output} does not end with .yaml, by which recipes are known; choose such a name")
    if output.exists():
        raise ConfigError(f"{output} exists and is not overwritten; choose another --output, or remove it")
    if not data.exists():
        raise UnknownNameError(f"there is no file {data}; give the file of your frames with --data")


def _known_teacher(teacher: str) -> TeacherFacts:
    """What is known of a teacher, whose elements and licence go into the recipe; warns of one that cannot be run.

    Raises UnknownNameError for one that there is not, and for one of one's own that is not known here.
    """
    if not is_teacher_name(teacher):
        raise UnknownNameError(no_teacher(teacher))
    facts, why = teacher_facts(teacher), why_not(teacher)
    if facts is None:
        raise UnknownNameError(f"{teacher} cannot be asked for its elements and its licence: {why}")
    if why:
        warnings.warn(f"{teacher} cannot be run: {why}", ZooWarning, stacklevel=3)
    return facts


def _write(output: Path, text: str) -> None:
    """Raises ConfigError, and writes nothing, where the recipe has a problem."""
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
        problems = check_recipe_file(temporary)
        if problems:
            told = problems[0].removeprefix(f"{temporary}:")
            raise ConfigError(f"no recipe can be made of this, for its line {told}; change what was asked for")


def format_of(data: Path) -> str:
    """The format that the name of a file tells. Raises ConfigError where it tells none."""
    name = data.with_suffix("") if data.suffix in _COMPRESSED else data
    if name.suffix in _SUFFIXES:
        return _SUFFIXES[name.suffix]
    if data.is_dir():
        return "deepmd"
    raise ConfigError(f"the name of {data} does not tell its format; give --format, one of {', '.join(OWN_FORMATS)}")


def take_survey(data: Path, form: str, known: set[str], teacher: str) -> Survey:
    """What a file holds that a teacher of these elements can label. Raises ConfigError where that is nothing."""
    survey = Survey()
    for frame in read_frames(data, form):
        survey.see(frame, known)
    unknown = ", ".join(sorted(survey.unknown))
    if not survey.frames:
        why = f" but frames with {unknown}, which {teacher} does not know; take another teacher" if unknown else ""
        raise ConfigError(f"{data} holds no frames{why or '; give a file that has some'}")
    if survey.strange:
        text = f"{teacher} does not know {unknown}: {survey.strange} frames of {data.name} with such atoms are left out"
        warnings.warn(f"{text}; take another teacher to keep them", ZooWarning, stacklevel=2)
    if len(survey.periodic) > 1:
        kinds = ", ".join(sorted(_PERIODIC[sum(axes)] for axes in survey.periodic))
        raise ConfigError(
            f"{data} holds frames of several kinds ({kinds}), an engine is for one: put each into a file of its own"
        )
    return survey


def choose_division(frames: Sequence[Frame]) -> tuple[Division, dict[Split, int]]:
    """How frames are divided, and how many each split gets: by molecule, material or trajectory where there are many,
    else by blocks of neighbours, never frame by frame. The salt is the first with which no split is much too small.

    Raises ConfigError where there are too few groups.
    """
    division = _kept_together(frames)
    keys = [group_key(frame, division) for frame in frames]
    counts, member = Counter(keys), dict(zip(keys, frames, strict=True))
    if len(counts) < _FEW:
        division = division.model_copy(update={"train": 0.6, "validation": 0.2, "test": 0.2})
    best: tuple[float, Division, dict[Split, int]] | None = None
    for salt in ["", *map(str, range(1, _SALTS))]:
        salted = division.model_copy(update={"salt": salt})
        sides: dict[Split, int] = dict.fromkeys(SPLITS, 0)
        for key, frame in member.items():
            sides[split_of(frame, salted)] += counts[key]
        least = min(sides[split] / (getattr(salted, split) * len(frames)) for split in SPLITS)
        if best is None or least > best[0]:
            best = least, salted, sides
        if least > _ENOUGH:
            break
    if best is None or best[0] == 0:
        raise ConfigError(
            f"{len(frames)} frames make {len(counts)} groups of what is alike, too few for training, validation and "
            "test; give more frames"
        )
    return best[1:]


def _kept_together(frames: Sequence[Frame]) -> Division:
    """What frames are divided by."""
    parts = {"train": 0.8, "validation": 0.1, "test": 0.1}
    for by, least in _GROUPS.items():
        names = {getattr(frame, by) for frame in frames}
        if None not in names and len(names) >= least:
            return Division.model_validate(parts | {"by": by})
    return Division.model_validate(parts | {"by": "block", "block": max(2, math.ceil(len(frames) / 50))})


def _data_parts(data: Path, survey: Survey, licence: str | None) -> dict[str, str]:
    """The lines that say where frames are from."""
    path, comment = _sought(data)
    named = [f"  data:\n    - {{name: {_text(data.name)}, licence: {licence}}}"] if licence else []
    asked = "  # data: [{name: ..., licence: CC-BY-4.0}]  # whose frames these are, and their terms, before you publish"
    filters = f"      filters:  # what the teacher knows\n{_elements(survey, 8)}\n"
    return {
        "data": "\n".join(named or [asked]),
        "path": _text(path),
        "path_comment": comment,
        "sha256": data_digest(data),
        "expected": f"{{frames: {len(survey.frames)}, atoms: {round(survey.atoms / len(survey.frames))}}}",
        "filters": filters if survey.strange else "",
    }


def _sought(data: Path) -> tuple[str, str]:
    """The path of a file as a recipe has it: from a folder of ``ZOO_DATA``, else from the root."""
    whole = data.resolve()
    for folder in filter(None, os.environ.get(DATA_FOLDERS, "").split(os.pathsep)):
        if whole.is_relative_to(Path(folder).expanduser().resolve()):
            return whole.relative_to(Path(folder).expanduser().resolve()).as_posix(), ""
    return str(whole), f"  # or from a folder that {DATA_FOLDERS} names, for other machines"


def _division_parts(division: Division, sides: dict[Split, int]) -> dict[str, str]:
    """The lines that say which frames are learned from."""
    groups = ""
    for split, frames in sides.items():
        groups += f"    - name: {split}-frames\n      kind: subset\n      split: {split}\n      subset: own\n"
        if frames > _MOST[split]:
            groups += f"      count: {_MOST[split]}  # of {frames}; remove the line to label them all\n"
    if division.by == "block":
        comment = f"{division.block} neighbours in the file stay together, for they are alike"
        block = f"        block: {division.block}\n"
    else:
        comment, block = f"frames of one {division.by} stay together", ""
    return {
        "division_comment": comment,
        "by": division.by,
        "block": block,
        **{split: f"{getattr(division, split):g}" for split in SPLITS},
        "salt": _text(division.salt),
        "groups": groups,
    }


def _learning_parts(teacher: TeacherFacts, survey: Survey, sides: dict[Split, int]) -> dict[str, str | int | float]:
    """The lines that say what is asked of the teacher, how the student learns, and how it is measured."""
    traits = teacher.traits or Traits()
    structures = min(sides["train"], _MOST["train"])
    weights = {"energy": 5} if traits.energies else {}
    weights |= {"force": 100} | ({"stress": 500} if traits.stress and survey.crystals else {})
    weights |= {"hessian": 20 if survey.crystals else 5}  # as docs/distillation.md found for molecules
    whole = all(survey.labelled[label] == len(survey.frames) for label in ("energy", "forces"))
    own = "energy_from: dataset and force_from: dataset learn from the labels of the file instead"
    moving = {"temperature": 600, "dynamics_steps": 2000, "teacher_dynamics_steps": 500, "probes": 2}
    vibrating = {"temperature": 500, "dynamics_steps": 10000, "teacher_dynamics_steps": 1000, "probes": 4}
    return {
        "dtype": "float64" if teacher.name in _IN_FLOAT64 else "float32",
        "elements": _elements(survey, 2),
        "labels_comment": own if whole else "all are of what the teacher says",
        "weights": "".join(f"  {term}: {weight}\n" for term, weight in weights.items()),
        "structures": structures,
        "steps": next(steps for most, steps in _STEPS if structures <= most),
        "evaluation_comment": _EVALUATED[survey.crystals],
        "timestep": 0.5 if "H" in survey.elements else 1.0,
        **(moving if survey.crystals else vibrating),
    }


def _naming_parts(name: str, data: Path, survey: Survey, licences: list[str]) -> dict[str, str]:
    """The lines that say what the student is. Raises ConfigError, and LicenceError where no licence is left for it."""
    what = "Crystals" if survey.crystals else "Molecules"
    subset = re.sub(r"[^a-z0-9]+", "-", name.partition("/")[2].removesuffix("-student")).strip("-")
    count = len(survey.symbols)
    kinds = ", ".join(survey.symbols) if count <= _NAMED else f"{count} elements"
    purpose = f"{what} of {kinds}, as in the frames of {data.name}"
    for licence in licences:
        if licence not in TERMS:
            raise ConfigError(f"licence {licence!r} is unknown; known are {', '.join(LICENCES)}")
    sources = [Source("data" if number else "teacher", one, one) for number, one in enumerate(licences)]
    lawful = [one for one in ("MIT", *LICENCES) if all(one in TERMS[given].followed_by for given in licences)]
    if not lawful:
        check_terms(name, "MIT", sources)
    return {"subset": _flow([subset]), "purpose": _text(purpose), "licence": lawful[0]}


def _text(text: str) -> str:
    """A text as YAML that reads back as the same."""
    return json.dumps(text, ensure_ascii=False)


def _elements(survey: Survey, indent: int) -> str:
    """The key ``elements`` so far from the margin, in as many lines as it takes."""
    key = " " * indent + "elements: ["
    return textwrap.fill(f"{key}{_flow(survey.symbols)}]", _WIDTH, subsequent_indent=" " * len(key))


def _flow(symbols: Sequence[str]) -> str:
    """Symbols for a list in brackets, in quotes where YAML would read no text."""
    return ", ".join(symbol if yaml.safe_load(symbol) == symbol else _text(symbol) for symbol in symbols)
