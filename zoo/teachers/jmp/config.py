"""What is kept of weights of JMP beside their numbers, and what is known of the two models that are published."""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from ase.data import chemical_symbols
from pydantic import AfterValidator, Field, model_validator

from zoo.config import Config
from zoo.gemnet_oc.config import JMP_L, JMP_S, GemNetOCConfig
from zoo.licences import LICENCES
from zoo.naming import quoted

LICENCE = "CC-BY-NC-4.0"
CITATION = (
    "N. Shoghi, A. Kolluru, J. R. Kitchin, Z. W. Ulissi, C. L. Zitnick, B. M. Wood, From Molecules to Materials: "
    "Pre-training Large Generalizable Models for Atomic Property Prediction, ICLR 2024, arXiv:2310.16802"
)
HEADS = ("oc20", "oc22", "ani1x", "transition1x")  # of the pre-trained models, in the order of their files
MOLECULAR = {  # the heads for molecules, which zoo converts, and what their data were computed with
    "ani1x": "ωB97X/6-31G(d), the ANI-1x head",
    "transition1x": "ωB97X/6-31G(d), the Transition-1x head",
}
ELEMENTS = (1, 6, 7, 8)  # of the molecular data of pre-training, and of MD22


def _check_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("expected one line of text that can be printed")
    return text


def _check_licence(text: str) -> str:
    if text not in LICENCES:
        raise ValueError(f"zoo does not know the terms of {quoted(text)}; it knows {', '.join(LICENCES)}")
    return text


_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Line = Annotated[str, Field(max_length=1000), AfterValidator(_check_line)]
_Licence = Annotated[str, AfterValidator(_check_licence)]


class Normalization(Config):
    """What a checkpoint says of its training data: the mean was subtracted, and the rest divided by the std."""

    energy_mean: float | None = None  # eV
    energy_std: float | None = None  # eV
    force_mean: float | None = None  # eV/Å
    force_std: float | None = None  # eV/Å


class JMPConfig(Config):
    """``config.json`` in a folder of weights. The mean that energies were trained around is not added to them."""

    format: Literal[1] = 1
    name: _Line  # "jmp-l/teacher"
    network: GemNetOCConfig
    references: dict[str, float] = Field(default_factory=dict)  # symbol: eV of an atom; none: energies are relative
    level_of_theory: _Line
    licence: _Licence = LICENCE  # SPDX
    citation: _Line = CITATION
    source: _Line  # an address, the name of a file, or the recipe that trained them
    source_sha256: _Sha256 | None = None
    source_bytes: int | None = Field(None, ge=1)
    kept: Literal["ema", "raw", "trained"]  # averaged over training, its last, or of a recipe
    head: _Line | None = None  # of several pre-trained ones
    normalization: Normalization | None = None  # that a checkpoint states
    weights_sha256: _Sha256 | None = None  # of model.safetensors; None until that is written

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what the teacher says: its network, references and weights."""
        told = self.model_dump(mode="json", include={"network", "references", "weights_sha256"})
        return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @model_validator(mode="after")
    def _of_known_elements(self) -> Self:
        known = {chemical_symbols[number] for number in self.network.elements}
        strange = sorted(self.references.keys() - known)
        if strange:
            raise ValueError(f"references has {strange[0]}, which is not among the elements of network")
        return self


@dataclass(frozen=True)
class Published:
    """A pre-trained model as its authors give it out."""

    url: str
    network: GemNetOCConfig  # whose shape it has
    bytes: int | None  # None where nobody has stated it
    etag: str | None  # of Amazon S3, from third hand: the MD5 of the MD5s of the parts, and how many there are
    size: str  # for people
    kept: str

    @property
    def terms(self) -> str:
        """Where it comes from, how much that is, under which licence, and how much remains."""
        host = self.url.removeprefix("https://").partition("/")[0]
        return f"{self.size} from {host}, {LICENCE}, {self.kept} kept"


PUBLISHED = {
    "jmp-s": Published(
        "https://jmp-iclr-datasets.s3.amazonaws.com/jmp-s.pt", JMP_S, None, None, "about 0.7 GB", "0.2 GB"
    ),
    "jmp-l": Published(
        "https://jmp-iclr-datasets.s3.amazonaws.com/jmp-l.pt",
        JMP_L,
        3_749_529_931,
        "81f27687ded066a05b58e75665d58675-447",
        "3.7 GB",
        "0.9 GB",
    ),
}
PARTS = 8 << 20  # bytes of a part that the ETag was made from
