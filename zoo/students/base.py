"""What all students share: elements and their embedding, the scale of energies, and how both meet a training set."""

from collections.abc import Callable, Sequence
from typing import Annotated, Self

import torch
from ase.data import atomic_numbers
from pydantic import AfterValidator, FailFast, Field
from torch import Tensor, nn

from zoo.config import Config
from zoo.errors import CapabilityError, ConfigError
from zoo.graph import Graph
from zoo.potential import Potential


def _known(symbols: tuple[str, ...]) -> tuple[str, ...]:
    for symbol in symbols:
        if symbol not in atomic_numbers or symbol == "X":
            raise ValueError(f"{symbol!r} is not an element")
    if len(set(symbols)) != len(symbols):
        raise ValueError("an element is given twice")
    return symbols


Elements = Annotated[tuple[str, ...], FailFast(), Field(min_length=1), AfterValidator(_known)]


class Architecture(Config):
    """What the config of every architecture says; each adds what decides its shape."""

    architecture: str
    elements: Elements
    cutoff: float = Field(5.0, gt=0, le=20)  # Å
    # channels of the teacher's element embedding that stands, frozen, in the place of an own one; 0: an own one
    teacher_channels: int = Field(0, ge=0, le=8192)

    @property
    def direct(self) -> bool:
        """Whether forces are predicted, not the gradient of the energy."""
        return False


class Student(Potential):
    """A potential that is trained: an architecture writes ``atomic_outputs`` and ``_calibrate``."""

    config: Architecture
    embedding: "ElementEmbedding"
    scale: Tensor  # () eV, what energies of the network are multiplied by; over one Å, its forces
    references: Tensor  # (elements,) eV, float64
    slots: Tensor  # (119,) atomic number -> row of the tables

    def __init__(self, config: Architecture, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.cutoff = config.cutoff
        self.elements = tuple(atomic_numbers[symbol] for symbol in config.elements)
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("references", torch.zeros(len(self.elements), dtype=torch.float64))
        self.register_buffer("slots", _slots(self.elements), persistent=False)

    def atomic_energies(self, graph: Graph) -> Tensor:
        return self.atomic_outputs(graph).energies

    def reference_energies(self, numbers: Tensor) -> Tensor:
        return self.references[self.slots[numbers]]

    def element_embeddings(self) -> Tensor:
        return self.embedding.rows().detach()

    def embed(self, numbers: Tensor) -> Tensor:
        """(atoms, channels) What the network knows of atoms before it looks at their neighbours."""
        rows = self.embedding.rows()
        return rows.index_select(0, self.slots[numbers])

    def calibrate(self, graphs: Sequence[Graph]) -> None:
        """Sets the network's own constants by the graphs that it will be trained on; the same from the same graphs.

        Raises ConfigError where the embedding of the teacher is still to be set.
        """
        if self.config.teacher_channels and not bool(self.embedding.table.isfinite().all()):
            raise ConfigError(
                "student.teacher_channels asks for the teacher's element embedding, which was not set; "
                "call set_teacher_embedding first, or set it to 0 for an own embedding"
            )
        self._calibrate(graphs)

    def _calibrate(self, graphs: Sequence[Graph]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must say how it is calibrated")

    def start_from(self, teacher: Potential) -> None:
        """Takes the weights of a teacher that has the same network. Raises CapabilityError where it has not."""
        raise CapabilityError(
            f"training.start is teacher, but no teacher has the network {self.config.architecture}; set it to fresh"
        )

    def set_teacher_embedding(self, table: Tensor) -> None:
        """Takes the teacher's element embedding (elements, teacher_channels), in the order of ``elements``.

        It is saved with the weights and never trained. Raises ConfigError for a table of another shape.
        """
        expected = (len(self.elements), self.config.teacher_channels)
        if not self.config.teacher_channels:
            raise ConfigError(
                "student.teacher_channels is 0, so the student has an element embedding of its own; "
                f"set it to {table.shape[-1]} to have the teacher's"
            )
        if tuple(table.shape) != expected:
            raise ConfigError(
                f"the teacher's element embedding has the shape {tuple(table.shape)}, expected {expected}: "
                "one row an element of the student; set student.teacher_channels to the length of its rows"
            )
        self.embedding.table.copy_(table.detach())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The references stay in float64, whatever the type of the rest."""
        references = self.references
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        applied.references = references.to(applied.references.device)
        return applied


class ElementEmbedding(nn.Module):
    """A vector for each element: a table that is trained, or a teacher's frozen one and a linear layer after it.

    The latter is the a2a baseline of Amin, Raja, Krishnapriyan (ICLR 2025, arXiv 2501.09009). Until a teacher's table
    is set, it is NaN, so that nothing trains without it unseen.
    """

    table: Tensor  # (elements, teacher_channels)

    def __init__(self, elements: int, channels: int, teacher_channels: int = 0) -> None:
        super().__init__()
        self.frozen = teacher_channels > 0
        if self.frozen:
            self.register_buffer("table", torch.full((elements, teacher_channels), torch.nan))
            self.linear = nn.Linear(teacher_channels, channels)
        else:
            self.weight = nn.Parameter(torch.empty(elements, channels))

    def rows(self) -> Tensor:
        """(elements, channels)"""
        rows: Tensor = self.linear(self.table) if self.frozen else self.weight
        return rows


def _slots(elements: tuple[int, ...]) -> Tensor:
    slots = torch.full((119,), -1, dtype=torch.int64)
    slots[torch.tensor(elements)] = torch.arange(len(elements))
    return slots
