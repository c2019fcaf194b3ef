"""JMP, foundation models of molecules and materials, with weights that ``zoo convert`` or a recipe has put here.

Shoghi et al., ICLR 2024, arXiv 2310.16802. Forces are the network's own, and energies are relative: neither their mean
nor the energies of the elements that were subtracted from the training data are published.
"""

import torch

from zoo.errors import IntegrityError, MissingPackageError, NotReleasedError
from zoo.gemnet_oc.network import GemNetOC
from zoo.licences import CODE_LICENCE
from zoo.potential import Traits
from zoo.teachers.base import Teacher
from zoo.teachers.jmp.config import PUBLISHED, JMPConfig
from zoo.teachers.jmp.model import JMP
from zoo.teachers.jmp.weights import CONFIG, MODEL, read_config, read_weights, write_weights
from zoo.teachers.weights import weights_folder
from zoo.tensors import WithoutParameters
from zoo.version import __version__

_FINE_TUNED = "/md22-teacher"  # how its name ends


def names() -> tuple[str, ...]:
    """The teachers of this package, of which ``zoo convert`` or a recipe makes the weights."""
    return (*(f"{family}/teacher" for family in PUBLISHED), *(f"{family}{_FINE_TUNED}" for family in PUBLISHED))


def load(name: str, dtype: torch.dtype, device: torch.device | str) -> Teacher:
    """A teacher whose weights are here.

    Raises MissingPackageError for a pre-trained one that was not converted, NotReleasedError for a fine-tune that was
    neither made nor converted; ConfigError and IntegrityError where its folder is not what it should be.
    """
    why, folder = absent(name), weights_folder(name)
    if why is not None:
        kind = NotReleasedError if name.endswith(_FINE_TUNED) else MissingPackageError
        raise kind(f"{name} cannot be run: {why}")
    config, potential = read_weights(folder, dtype, device)
    if config.name != name:
        raise IntegrityError(f"{folder} holds {config.name}, expected {name}; remove it, and run zoo convert again")
    return Teacher(
        name=name,
        potential=potential,
        weights_sha256=config.digest,
        package=f"zoo {__version__}",
        level_of_theory=config.level_of_theory,
        licence_code=CODE_LICENCE,
        licence_weights=config.licence,
        citation=config.citation,
    )


def absent(name: str) -> str | None:
    """Why a teacher cannot be loaded, and what brings it here; None where its weights are."""
    folder = weights_folder(name)
    if (folder / CONFIG).is_file() and (folder / MODEL).is_file():
        return None
    family = name.partition("/")[0]
    if name.endswith(_FINE_TUNED):
        return (
            f"nobody has published this fine-tune; make it with: zoo distill {name}, or convert a checkpoint of your "
            f"own with: zoo convert {family} FILE --name {name}"
        )
    return (
        f"its weights are not here; run: zoo convert {family} --download --accept-licence ({PUBLISHED[family].terms}), "
        f"or, with a copy of your own: zoo convert {family} FILE"
    )


def traits(name: str) -> Traits:
    """Those of the weights that are here, else of the published ones, or of what the recipe makes. Raises ConfigError.

    A fine-tune of one's own may lack energies, or have forces from their gradient.
    """
    here = absent(name) is None
    network = read_config(weights_folder(name)).network if here else PUBLISHED[name.partition("/")[0]].network
    with WithoutParameters():
        return GemNetOC(network).traits


__all__ = [
    "JMP",
    "JMPConfig",
    "absent",
    "load",
    "names",
    "read_weights",
    "traits",
    "weights_folder",
    "write_weights",
]
