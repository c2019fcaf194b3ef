"""GemNet-OC as an architecture that is trained: JMP's network, fine-tuned from JMP's weights (``zoo.gemnet_oc``).

Embeddings and layers begin as the teacher's, the two heads anew. Its energies and direct forces are those of the
network times the scale of the training set; energies of the elements are fitted, as for all students.
"""

import math
from collections.abc import Sequence
from typing import Literal, Self

import torch
from ase.data import atomic_numbers
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo.errors import CapabilityError
from zoo.gemnet_oc.config import GemNetOCConfig, Shape
from zoo.gemnet_oc.network import GemNetOC
from zoo.graph import Graph
from zoo.potential import AtomOutputs, Potential
from zoo.students.base import Architecture, Student


class GemNetOCStudentConfig(Shape, Architecture):
    """The shape of the network that it starts from, and the elements that it will know."""

    architecture: Literal["gemnet-oc"] = "gemnet-oc"
    cutoff: float = Field(12.0, gt=0, le=20)  # Å
    teacher_channels: Literal[0] = 0  # the embedding is the teacher's already, and is trained on

    @property
    def direct(self) -> bool:
        return self.forces == "direct"

    def to_network(self) -> GemNetOCConfig:
        """The network without scales, which are the student's. Raises ValueError where it cannot be one."""
        shape = {key: getattr(self, key) for key in Shape.model_fields}
        numbers = tuple(sorted(atomic_numbers[symbol] for symbol in self.elements))
        return GemNetOCConfig(**shape, cutoff=self.cutoff, elements=numbers)

    @model_validator(mode="after")
    def _is_a_network(self) -> Self:
        self.to_network()  # whose schema says what does not fit
        return self


class GemNetOCStudent(Student):
    """A potential around the network; its features are the embeddings of atoms after the last block."""

    config: GemNetOCStudentConfig

    def __init__(self, config: GemNetOCStudentConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config, generator)
        self.network = GemNetOC(config.to_network())
        self.traits = self.network.traits
        _initialise(self.network, generator)

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        outputs = self.network.atomic_outputs(graph)
        forces = None if outputs.forces is None else outputs.forces * self.scale
        return AtomOutputs(outputs.energies * self.scale, outputs.features, forces)

    def element_embeddings(self) -> Tensor:
        rows = [number - 1 for number in self.elements]
        return self.network.embedding.weight.detach()[rows]

    def start_from(self, teacher: Potential) -> None:
        """Takes the embedding and all layers of a network of the same shape, not its heads. Raises CapabilityError."""
        problem = mismatch(self.config, teacher)
        if problem is not None:
            raise CapabilityError(problem)
        own, theirs = self.network.state_dict(), teacher.state_dict()
        for name in _shared(own):
            own[name].copy_(theirs[name])

    def _calibrate(self, graphs: Sequence[Graph]) -> None:
        """Nothing to do: the scale factors come with the weights that it starts from."""


def mismatch(config: GemNetOCStudentConfig, teacher: Potential) -> str | None:
    """Why a student of this config cannot start from a teacher's weights, as a sentence; None where it can.

    A teacher with a force branch may teach one without, for which its layers are left out; not the reverse.
    """
    if not isinstance(teacher, GemNetOC):
        return (
            f"training.start is teacher, but the teacher is a {type(teacher).__name__}, not a GemNetOC as the student; "
            "name jmp-s/teacher or jmp-l/teacher"
        )
    for key in Shape.model_fields:
        own, theirs = getattr(config, key), getattr(teacher.config, key)
        if key == "forces":
            if own == "direct" and theirs == "gradient":
                return "student.forces is direct, but the teacher has no force branch to start from; set it to gradient"
        elif own != theirs:
            return f"student.{key} is {own}, but the teacher's network has {theirs}; set it to that"
    unknown = set(config.to_network().elements) - set(range(1, teacher.config.num_elements + 1))
    return f"the teacher has no embedding of element {min(unknown)}; remove it" if unknown else None


def _shared(state: dict[str, Tensor]) -> list[str]:
    return [name for name in state if name.startswith(("embedding.", "backbone."))]


def _initialise(network: nn.Module, generator: torch.Generator | None) -> None:
    """Weights that keep the variance, biases of zero; all drawn from ``generator``."""
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            nn.init.zeros_(parameter)
        else:
            fan = parameter.shape[-1] if parameter.dim() == 2 else parameter.shape[0] * parameter.shape[1]
            nn.init.normal_(
                parameter, std=1.0 if name.startswith("embedding") else 1 / math.sqrt(fan), generator=generator
            )
