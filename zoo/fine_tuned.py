"""A fine-tuned network takes its place among the teachers of this machine."""

import shlex
import warnings
from pathlib import Path

from ase.data import chemical_symbols

from zoo.artifact import MODEL, ArtifactConfig, read_model_folder
from zoo.config import parse
from zoo.errors import CapabilityError, ZooWarning
from zoo.files import sha256_file
from zoo.students import GemNetOCStudent
from zoo.teachers import FINE_TUNED
from zoo.teachers.jmp import JMPConfig, absent, weights_folder, write_weights
from zoo.teachers.jmp.weights import read_config


def is_teacher(name: str) -> bool:
    """Whether an engine of this name will teach others."""
    return name in FINE_TUNED


def keep_as_teacher(model: Path) -> Path:
    """The folder from which the engine of a model folder teaches, under its own name.

    What it says is what the engine says: scales and energies of the elements go with it. Weights that were converted
    from a file stay, with a warning; those of an earlier distillation are replaced. Raises CapabilityError for another
    architecture than GemNet-OC, IntegrityError and ConfigError where the folder is not what it should be.
    """
    config, student, _ = read_model_folder(model)
    folder, digest = weights_folder(config.name), sha256_file(model / MODEL)
    if not isinstance(student, GemNetOCStudent):
        raise CapabilityError(
            f"{config.name} would teach, but is a {config.architecture.architecture}; set student.architecture to "
            "gemnet-oc, or give the recipe another name"
        )
    kept = read_config(folder) if absent(config.name) is None else None
    if kept is not None and kept.kept != "trained":
        warnings.warn(
            f"{config.name} stays what was converted from {kept.source}; to have it replaced by what was made here, "
            f"run: rm -r {shlex.quote(str(folder))}, and the same again",
            ZooWarning,
            stacklevel=2,
        )
    elif kept is None or kept.source_sha256 != digest:
        write_weights(folder, _config(config, student, digest), student.network)
    return folder


def _config(config: ArtifactConfig, student: GemNetOCStudent, digest: str) -> JMPConfig:
    scale = float(student.scale)
    symbols = [chemical_symbols[number] for number in student.elements]
    network = student.network.config.model_copy(update={"energy_scale": scale, "force_scale": scale})
    told = {
        "name": config.name,
        "network": network.model_dump(mode="json"),
        "references": dict(zip(symbols, student.references.tolist(), strict=True)),
        "level_of_theory": config.lineage.level_of_theory,
        "licence": config.licence,
        "source": f"zoo distill {config.name}, from {config.lineage.teacher}",
        "source_sha256": digest,
        "kept": "trained",
    }
    return parse(JMPConfig, told, config.name)
