"""Teachers that a recipe may name though this version cannot run them: what is known of each, and what to do instead.

Their recipes are checked, compared and estimated like all others. What is said of them here is what their papers and
packages state; nothing of it was run.
"""

from dataclasses import dataclass
from typing import Never

from zoo.errors import CapabilityError
from zoo.potential import Traits


@dataclass(frozen=True)
class Announced:
    """A teacher without an adapter."""

    package: str  # that brings its code: a name for pip, or a repository
    weights: str  # where they are published
    licence_code: str  # SPDX
    licence_weights: str  # SPDX
    level_of_theory: str
    traits: Traits
    reason: str  # why it cannot be run here
    instead: str  # the teacher that takes its place for the same subsets


_MACE = "this version has no adapter for MACE"
_SPICE = "ωB97M-D3(BJ)/def2-TZVPPD, SPICE"

ANNOUNCED = {
    "mace-off23-large/teacher": Announced(
        package="mace-torch",
        weights="https://github.com/ACEsuit/mace-off/raw/main/mace_off23/MACE-OFF23_large.model",
        licence_code="MIT",
        licence_weights="LicenseRef-ASL",
        level_of_theory=_SPICE,
        traits=Traits(features=224),
        reason=_MACE,
        instead="gfn2-xtb/teacher",
    ),
    "mace-mp-0-large/teacher": Announced(
        package="mace-torch",
        weights="https://github.com/ACEsuit/mace-mp/releases/download/mace_mp_0/MACE_MPtrj_2022.9.model",
        licence_code="MIT",
        licence_weights="MIT",
        level_of_theory="PBE and PBE+U, Materials Project (MPtrj)",
        traits=Traits(features=256),
        reason=_MACE,
        instead="sevennet-0/teacher",
    ),
}


def why_not(name: str) -> str:
    """Why a teacher of the table cannot be run, and which one can."""
    teacher = ANNOUNCED[name]
    return f"{teacher.reason}; {teacher.instead} can teach the same subset"


def refuse(name: str) -> Never:
    """Says so. Raises CapabilityError."""
    raise CapabilityError(f"{name} cannot be run: {why_not(name)}")
