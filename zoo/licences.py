"""Which terms may follow which: a student is never under weaker terms than its teacher's weights and its data.

The table is closed, and on the safe side: what is not in it is refused, though a lawyer might allow it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from zoo.errors import LicenceError

CODE_LICENCE = "MIT"  # of zoo, whose code runs every student
UNSTATED = "LicenseRef-unstated"  # of data beside which nobody has put terms: learned from, and said so

_OWN = "LicenseRef-"  # SPDX's mark of a licence that its list lacks
_LATER = "-or-later"  # SPDX's mark of what the Hub does not tell apart


@dataclass(frozen=True)
class Terms:
    """A licence of weights or data."""

    spdx: str
    name: str
    url: str  # of the page that describes it
    commercial: bool  # whether it allows commercial use at all
    followed_by: tuple[str, ...]  # SPDX: those that a student may have
    text: str | None = None  # address of its words, where whoever passes on what came of it must pass them on

    @property
    def repeated(self) -> bool:
        """Whether its words must be passed on."""
        return self.text is not None

    @property
    def label(self) -> str:
        """The identifier of the Hub, or, for a licence that the Hub has none for, the name to give there."""
        return self.spdx.removeprefix(_OWN).removesuffix(_LATER).lower()

    @property
    def hub(self) -> str:
        """The identifier of the Hub, or ``other``."""
        return "other" if self.spdx.startswith(_OWN) else self.label

    @property
    def card_keys(self) -> dict[str, str]:
        """What the front matter of a card says of it."""
        if self.hub != "other":
            return {"license": self.hub}
        return {"license": self.hub, "license_name": self.label, "license_link": self.url}


@dataclass(frozen=True)
class Source:
    """What a student was made from, and its licence."""

    what: Literal["teacher", "data"]
    name: str
    licence: str  # SPDX, of the weights or of the data

    def __str__(self) -> str:
        if self.what == "teacher":
            return f"the weights of its teacher {self.name} are {self.licence}"
        return f"its data set {self.name} is {self.licence}"


_BY_NC = ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0")
_BY = ("CC-BY-4.0", "CC-BY-SA-4.0", *_BY_NC, "LicenseRef-ASL", "LicenseRef-FAIR-Chemistry-v1")
_BSD = ("BSD-3-Clause", "Apache-2.0", *_BY)

TERMS = {
    terms.spdx: terms
    for terms in (
        Terms(
            "CC0-1.0",
            "Creative Commons Zero 1.0",
            "https://creativecommons.org/publicdomain/zero/1.0/",
            commercial=True,
            followed_by=("CC0-1.0", "MIT", *_BSD),
        ),
        Terms(
            "MIT",
            "MIT License",
            "https://spdx.org/licenses/MIT.html",
            commercial=True,
            followed_by=("MIT", *_BSD),
        ),
        Terms(
            "BSD-3-Clause",
            "BSD 3-Clause License",
            "https://spdx.org/licenses/BSD-3-Clause.html",
            commercial=True,
            followed_by=_BSD,
        ),
        Terms(
            "Apache-2.0",
            "Apache License 2.0",
            "https://www.apache.org/licenses/LICENSE-2.0",
            commercial=True,
            followed_by=("Apache-2.0",),
        ),
        # GFN2-xTB's numbers, compiled into tblite. A student holds none of them, only what it learned from answers, and
        # the output of a covered work is covered only where it is such a work itself (GPL 3, section 2, which LGPL 3
        # takes over). Nothing else in this table may be put under it: no source here needs that.
        Terms(
            "LGPL-3.0-or-later",
            "GNU Lesser General Public License 3.0 or later",
            "https://spdx.org/licenses/LGPL-3.0-or-later.html",
            commercial=True,
            followed_by=("LGPL-3.0-or-later", "CC0-1.0", "MIT", *_BSD),
        ),
        # Of ASE, whose calculators may teach: a student holds as little of them as of tblite.
        Terms(
            "LGPL-2.1-or-later",
            "GNU Lesser General Public License 2.1 or later",
            "https://spdx.org/licenses/LGPL-2.1-or-later.html",
            commercial=True,
            followed_by=("LGPL-2.1-or-later", "LGPL-3.0-or-later", "CC0-1.0", "MIT", *_BSD),
        ),
        Terms(
            "CC-BY-4.0",
            "Creative Commons Attribution 4.0",
            "https://creativecommons.org/licenses/by/4.0/",
            commercial=True,
            followed_by=_BY,
        ),
        Terms(
            "CC-BY-SA-4.0",
            "Creative Commons Attribution-ShareAlike 4.0",
            "https://creativecommons.org/licenses/by-sa/4.0/",
            commercial=True,
            followed_by=("CC-BY-SA-4.0",),
        ),
        Terms(
            "CC-BY-NC-4.0",
            "Creative Commons Attribution-NonCommercial 4.0",
            "https://creativecommons.org/licenses/by-nc/4.0/",
            commercial=False,
            followed_by=_BY_NC,
        ),
        Terms(
            "CC-BY-NC-SA-4.0",
            "Creative Commons Attribution-NonCommercial-ShareAlike 4.0",
            "https://creativecommons.org/licenses/by-nc-sa/4.0/",
            commercial=False,
            followed_by=("CC-BY-NC-SA-4.0",),
        ),
        Terms(  # MACE-OFF; section 2b: what is derived from it is under it as a whole; 13a: no commercial use
            "LicenseRef-ASL",
            "Academic Software License",
            "https://github.com/gabor1/ASL/blob/52733adb881efea63e0a63c5b8534faf95db475b/ASL.md",
            commercial=False,
            followed_by=("LicenseRef-ASL",),
            text="https://raw.githubusercontent.com/ACEsuit/mace-off/91a78c5a9c300d1104700d9352c8bfe449227737/LICENSE.md",
        ),
        # UMA and eSEN; section 1b: derivative works only under it, with a copy of it. The page shows licence and policy
        # to all, while the file LICENSE there, of the licence alone, is for those who have accepted them.
        Terms(
            "LicenseRef-FAIR-Chemistry-v1",
            "FAIR Chemistry License v1 with its Acceptable Use Policy",
            "https://huggingface.co/facebook/UMA",
            commercial=True,
            followed_by=("LicenseRef-FAIR-Chemistry-v1",),
            text="https://huggingface.co/facebook/UMA/resolve/main/LICENSE",
        ),
    )
}
LICENCES = tuple(TERMS)  # SPDX


def check_terms(name: str, licence: str, sources: Sequence[Source]) -> None:
    """Raises LicenceError where one of its sources forbids ``name`` this licence, or where nobody knows.

    Data that state no terms forbid nothing; ``unstated`` has what to say of them.
    """
    sources = [source for source in sources if source.what != "data" or source.licence != UNSTATED]
    for source in sources:
        if source.licence not in TERMS:
            raise LicenceError(f"{name}: {source}, whose terms zoo does not know; it knows {', '.join(LICENCES)}")
    for source in sources:
        if licence not in TERMS[source.licence].followed_by:
            raise LicenceError(f"{name} is {licence}, but {source}, which forbids that; {_advice(sources)}")


def unstated(sources: Iterable[Source]) -> dict[str, str]:
    """The data sets whose terms nobody has stated, by name, and what to say of each."""
    names = [source.name for source in sources if source.what == "data" and source.licence == UNSTATED]
    return {
        name: f"data set {name} states no licence; ask its authors before you pass on what learns from it"
        for name in names
    }


def is_commercial(licence: str | None) -> bool | None:
    """Whether a licence allows commercial use; None for one that zoo does not know."""
    terms = TERMS.get(licence or "")
    return terms.commercial if terms else None


def _advice(sources: Sequence[Source]) -> str:
    left = [spdx for spdx in LICENCES if all(spdx in TERMS[source.licence].followed_by for source in sources)]
    if left:
        return f"set the recipe's licence to {' or '.join(left)}"
    stated = ", ".join(f"{source.name} {source.licence}" for source in sources)
    return f"no licence is left that all its sources allow ({stated}); take other data, or another teacher"
