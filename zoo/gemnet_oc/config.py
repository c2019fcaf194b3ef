"""What decides the shape of a GemNet-OC, by the names that published checkpoints give it, and the two sizes of JMP."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from zoo.config import Config

_Size = Annotated[int, Field(ge=1, le=8192)]
_Layers = Annotated[int, Field(ge=0, le=16)]
_Number = Annotated[int, Field(ge=1, le=120)]
_Element = Annotated[int, Field(ge=1, le=118)]  # that has a symbol


class Shape(Config):
    """The layers, the neighbours that are kept, and where forces come from; by default JMP-S, forces along edges.

    Each atom keeps the nearest so many neighbours for each kind of edge. Distances are seen as fractions of
    ``basis_cutoff``, where the envelope ends, which may be farther than the cutoff: JMP was pre-trained on molecules
    with 8 Å and 12 Å.
    """

    TOLD: ClassVar = {"num_blocks", "emb_size_atom", "emb_size_edge", "forces"}  # to a person who looks at an engine

    num_blocks: int = Field(4, ge=1, le=16)
    emb_size_atom: _Size = 256
    emb_size_edge: _Size = 512
    emb_size_trip_in: _Size = 64
    emb_size_trip_out: _Size = 64
    emb_size_quad_in: _Size = 32
    emb_size_quad_out: _Size = 32
    emb_size_aint_in: _Size = 64
    emb_size_aint_out: _Size = 64
    emb_size_rbf: _Size = 16
    emb_size_cbf: _Size = 16
    emb_size_sbf: _Size = 32
    num_spherical: int = Field(7, ge=2, le=16)
    num_radial: int = Field(128, ge=2, le=1024)
    num_before_skip: _Layers = 2
    num_after_skip: _Layers = 2
    num_concat: _Layers = 1
    num_atom: _Layers = 3
    num_output_afteratom: _Layers = 3
    num_atom_emb_layers: _Layers = 2
    num_global_out_layers: _Layers = 2
    num_elements: _Number = 120
    basis_cutoff: float = Field(12.0, gt=0, le=20)  # Å
    max_neighbors: int = Field(30, ge=1)  # edges with messages, of which one direction of each pair is kept
    max_neighbors_aeaint: int = Field(20, ge=1)  # between atoms and edges
    max_neighbors_qint: int = Field(8, ge=1)  # in the middle of quadruplets
    max_neighbors_aint: int = Field(1000, ge=1)  # between atoms
    forces: Literal["direct", "gradient"] = "direct"


class GemNetOCConfig(Shape):
    """A whole network. All four kinds of edges end at ``cutoff``; outputs are multiplied by the scales."""

    cutoff: float = Field(12.0, gt=0, le=20)  # Å
    energies: bool = True  # whether there is a head for energies
    energy_bias: bool = False  # as the heads of pre-training have it
    energy_scale: float = Field(1.0, gt=0)  # eV
    force_scale: float = Field(1.0, gt=0)  # eV/Å, of direct forces
    elements: tuple[_Element, ...] = Field(tuple(range(1, 119)), min_length=1)  # atomic numbers

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.forces == "gradient" and not self.energies:
            raise ValueError("forces from the gradient need energies: true")
        if max(self.elements) > self.num_elements:
            raise ValueError(f"elements up to {max(self.elements)} do not fit into num_elements {self.num_elements}")
        if self.basis_cutoff < self.cutoff:
            raise ValueError(f"basis_cutoff {self.basis_cutoff:g} Å is below the cutoff {self.cutoff:g} Å")
        return self


JMP_S = GemNetOCConfig()
JMP_L = GemNetOCConfig(
    num_blocks=6,
    emb_size_edge=1024,
    emb_size_trip_out=128,
    emb_size_quad_in=64,
    emb_size_rbf=32,
    emb_size_sbf=64,
    num_concat=4,
)
