"""Teachers that a recipe may name though this version cannot run them: what is known of each, and what to do instead.

Their recipes are checked, compared and estimated like all others. What is said of them here is what their papers and
packages state; nothing of it was run.
"""

from dataclasses import dataclass
from typing import Never

from zoo.errors import CapabilityError, NotReleasedError
from zoo.potential import Traits


@dataclass(frozen=True)
class Announced:
    """A teacher without an adapter."""

    package: str  # that brings its code: a name for pip, or a repository
    weights: str  # where they are
    released: bool  # whether anyone has published them
    licence_code: str  # SPDX
    licence_weights: str  # SPDX
    level_of_theory: str
    traits: Traits
    reason: str  # why it cannot be run here
    instead: str  # the teacher that takes its place for the same subsets


_MACE = "this version has no adapter for MACE"
_JMP = "this version has no adapter for JMP's GemNet-OC"
_FINE_TUNED = "nobody has published the weights of this fine-tune on MD22, and " + _JMP
_SPICE = "ωB97M-D3(BJ)/def2-TZVPPD, SPICE"
_MD22 = "PBE+MBD, MD22"
_ANI = "ωB97X/6-31G(d), the ANI-1x head"
_GEMNET_OC = Traits(
    conservative=False, permutation_invariant=False, smoothness=-1, stress=False, atomic_energies=True, features=256
)
_FORCES_ALONE = Traits(
    conservative=False, permutation_invariant=False, smoothness=-1, energies=False, stress=False, features=256
)


def _jmp(weights: str, traits: Traits, level_of_theory: str) -> Announced:
    released = weights.startswith("https://")
    return Announced(
        package="facebookresearch/JMP",
        weights=weights,
        released=released,
        licence_code="CC-BY-NC-4.0",
        licence_weights="CC-BY-NC-4.0",
        level_of_theory=level_of_theory,
        traits=traits,
        reason=_JMP if released else _FINE_TUNED,
        instead="gfn2-xtb/teacher",
    )


_JMP_WEIGHTS = "https://jmp-iclr-datasets.s3.amazonaws.com/"
_OWN = "none published; a fine-tune of one's own, with forces alone"

ANNOUNCED = {
    "mace-off23-large/teacher": Announced(
        package="mace-torch",
        weights="https://github.com/ACEsuit/mace-off/raw/main/mace_off23/MACE-OFF23_large.model",
        released=True,
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
        released=True,
        licence_code="MIT",
        licence_weights="MIT",
        level_of_theory="PBE and PBE+U, Materials Project (MPtrj)",
        traits=Traits(features=256),
        reason=_MACE,
        instead="sevennet-0/teacher",
    ),
    "jmp-l/teacher": _jmp(_JMP_WEIGHTS + "jmp-l.pt", _GEMNET_OC, _ANI),
    "jmp-s/teacher": _jmp(_JMP_WEIGHTS + "jmp-s.pt", _GEMNET_OC, _ANI),
    "jmp-l/md22-teacher": _jmp(_OWN, _FORCES_ALONE, _MD22),
    "jmp-s/md22-teacher": _jmp(_OWN, _FORCES_ALONE, _MD22),
}


def refuse(name: str) -> Never:
    """Says, of a teacher of the table, why it cannot be run and which one can.

    Raises NotReleasedError where nobody has its weights, else CapabilityError.
    """
    teacher = ANNOUNCED[name]
    kind = CapabilityError if teacher.released else NotReleasedError
    raise kind(f"{name} cannot be run: {teacher.reason}; {teacher.instead} can teach the same subset")
