"""What is known of a teacher beside what it predicts."""

from dataclasses import dataclass

from zoo.potential import Potential


@dataclass(frozen=True)
class Teacher:
    """A potential to learn from, and where it comes from."""

    name: str  # "sevennet-0/teacher"
    potential: Potential
    weights_sha256: str  # of the file of weights, with the head of one's own, or of the formula's numbers
    package: str  # what computes it, with its version
    level_of_theory: str
    licence_code: str  # SPDX
    licence_weights: str  # SPDX
    citation: str
    batched: bool = True  # several structures at once cost less on a GPU than one after the other
