"""GemNet-OC (Gasteiger et al., TMLR 2022, arXiv 2204.02782), the architecture of JMP, in the shape of its weights.

Messages live on edges, embeddings on atoms; they hear of each other by triplets, by quadruplets with dihedral angles,
and directly. Parameters have the names of a fine-tuned checkpoint: ``embedding``, ``backbone``, ``out_energy`` and
``out_forces``.

Which neighbours an atom hears of depends on their order where more are near than are kept (``find_graphs``): then
energies depend on the order of atoms, and jump when the nearest change. Derivatives by differences are unsafe there.

Where a gradient by positions would keep more than ``WORKING_MEMORY``, or that of an energy for forces more than twice
as much, blocks are computed again when it is taken (``zoo/recompute.py``), and products of the Hessian are taken
forward over reverse, in a fraction of the memory.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from zoo.gemnet_oc.activation import ScaledSiLU
from zoo.gemnet_oc.basis import Bases, Basis
from zoo.gemnet_oc.config import GemNetOCConfig
from zoo.gemnet_oc.graphs import Edges, Graphs, find_graphs
from zoo.gemnet_oc.interactions import InteractionBlock
from zoo.gemnet_oc.layers import HALF_ROOT, AtomUpdate, Dense, ScaleFactor, residuals
from zoo.graph import Graph
from zoo.ops import scatter_sum
from zoo.potential import AtomOutputs, Potential, Traits
from zoo.recompute import Result, recomputed

WORKING_MEMORY = 3 << 30  # bytes kept for a gradient; where it would be more, blocks are computed again
_FOR_FORCES = 2  # times that may be kept for forces that are a gradient themselves, which each call takes
_KEPT_TWICE = 3.5  # times what a gradient keeps is about what its derivative does, in either order
_HEAD_LAYERS = 4  # before the last


class OutputBlock(AtomUpdate):
    """What a block has to say of atoms and, with a force branch, of edges."""

    def __init__(self, config: GemNetOCConfig) -> None:
        atom, edge, rbf = config.emb_size_atom, config.emb_size_edge, config.emb_size_rbf
        super().__init__(edge, atom, rbf, config.num_atom)
        self.seq_energy2 = nn.Sequential(*residuals(atom, config.num_output_afteratom))
        self.direct = config.forces == "direct"
        if self.direct:
            self.scale_rbf_F = ScaleFactor()
            self.seq_forces = nn.Sequential(*residuals(edge, config.num_atom))
            self.dense_rbf_F = Dense(rbf, edge, active=False)

    def forward(self, atoms: Tensor, messages: Tensor, basis: Basis) -> tuple[Tensor, Tensor | None]:
        """(atoms, emb_size_atom) and (edges, emb_size_edge)"""
        summed = self.update(messages, basis.output_radial, basis.graphs.main)  # (atoms, emb_size_atom)
        of_atoms = self.seq_energy2((summed + atoms) * HALF_ROOT)
        if not self.direct:
            return of_atoms, None
        return of_atoms, self.scale_rbf_F(self.seq_forces(messages) * self.dense_rbf_F(basis.output_radial))


class GlobalOutput(nn.Module):
    """One embedding from those of all blocks."""

    def __init__(self, channels: int, blocks: int, layers: int) -> None:
        super().__init__()
        self.out_mlp = nn.Sequential(Dense(channels * (blocks + 1), channels), *residuals(channels, layers))

    def forward(self, parts: list[Tensor]) -> Tensor:
        joined: Tensor = self.out_mlp(torch.cat(parts, dim=1))
        return joined


class Backbone(nn.Module):
    """Embeddings of atoms and edges from elements and geometry."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        blocks, layers = config.num_blocks, config.num_global_out_layers
        self.config = config
        self.working_memory = WORKING_MEMORY
        self.bases = Bases(config)
        self.int_blocks = nn.ModuleList(InteractionBlock(config) for _ in range(blocks))
        self.out_blocks = nn.ModuleList(OutputBlock(config) for _ in range(blocks + 1))
        self.out_mlp_E = GlobalOutput(config.emb_size_atom, blocks, layers)
        if config.forces == "direct":
            self.out_mlp_F = GlobalOutput(config.emb_size_edge, blocks, layers)

    def forward(self, atoms: Tensor, graph: Graph) -> tuple[Tensor, Tensor, Tensor | None, Edges]:
        """The last embeddings of atoms, the outputs of atoms (atoms, emb_size_atom) and of edges, and these."""
        graphs = find_graphs(graph, self.config)
        kept: float = self.kept_bytes(graphs, atoms.element_size())
        if forward_ad.unpack_dual(graph.positions).tangent is not None:
            kept *= _KEPT_TWICE
        elif self.config.forces == "gradient":
            kept /= _FOR_FORCES
        again = self.blocks_recomputed(kept)
        messages, basis = self.bases(atoms, graphs)
        parts = [self.out_blocks[0](atoms, messages, basis)]
        blocks = cast(Iterable[InteractionBlock], self.int_blocks)
        for number, (block, read) in enumerate(zip(blocks, list(self.out_blocks)[1:], strict=True)):
            run = recomputed if number < again else _kept
            (heard,) = run(block.hear, atoms, messages, basis)  # (edges, emb_size_edge)
            atoms, messages = run(block.update, atoms, messages, heard, basis)
            parts.append(run(read, atoms, messages, basis))
        of_atoms = self.out_mlp_E([part[0] for part in parts])
        of_edges = self.out_mlp_F([part[1] for part in parts]) if self.config.forces == "direct" else None
        return atoms, of_atoms, of_edges, basis.graphs.main

    def kept_bytes(self, graphs: Graphs, element_size: int) -> int:
        """An estimate of what all layers together keep for a gradient by positions."""
        config, main, middle = self.config, graphs.main, graphs.middle
        residuals = config.num_before_skip + config.num_after_skip + config.num_concat
        layers = 24 + 2 * residuals  # of which a block keeps the output at each main edge
        if config.forces == "direct":
            layers += 5 + 2 * config.num_atom
        pairs = len(middle.sources) * main.width
        by_edges = len(main.sources) * config.emb_size_edge * layers
        by_pairs = 4 * pairs * config.num_spherical * config.emb_size_quad_in
        by_basis = 3 * pairs * main.width * config.num_spherical
        return element_size * (config.num_blocks * (by_edges + by_pairs) + by_basis)

    def blocks_recomputed(self, kept: float) -> int:
        """How many blocks, the first ones, are computed again when a gradient is taken that would keep so many bytes.

        None where all fit into the working memory, or where parameters learn; else those that do not fit beside one
        that is computed again.
        """
        if kept <= self.working_memory or self.learns():
            return 0
        blocks = self.config.num_blocks
        return blocks - max(0, int(self.working_memory / kept * blocks) - 1)

    def learns(self) -> bool:
        """Whether a parameter wants a gradient, which only what is kept can give."""
        return any(parameter.requires_grad for parameter in self.parameters())


def _kept(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)``, of which everything is kept for a gradient."""
    return function(*arguments)


class GemNetOC(Potential):
    """A GemNet-OC with at most a head for energies and one for forces along edges.

    Its features are the embeddings of atoms after the last block. Without a head for energies these are NaN.
    """

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        self.config = config
        self.cutoff = config.cutoff
        self.elements = config.elements
        direct = config.forces == "direct"
        self.traits = Traits(
            conservative=not direct,
            permutation_invariant=False,
            smoothness=-1,
            energies=config.energies,
            stress=not direct,
            features=config.emb_size_atom,
        )
        self.embedding = nn.Embedding(config.num_elements, config.emb_size_atom)
        self.backbone = Backbone(config)
        if config.energies:
            self.out_energy = make_head(config.emb_size_atom, bias=config.energy_bias)
        if direct:
            self.out_forces = make_head(config.emb_size_edge, bias=True)

    def atomic_energies(self, graph: Graph) -> Tensor:
        return self.atomic_outputs(graph).energies

    def atomic_outputs(self, graph: Graph) -> AtomOutputs:
        atoms = self.embedding(graph.numbers - 1)  # (atoms, emb_size_atom)
        atoms, of_atoms, of_edges, edges = self.backbone(atoms, graph)
        energies = self.out_energy(of_atoms)[:, 0] if self.config.energies else of_atoms.new_zeros(len(of_atoms))
        return AtomOutputs(energies * self.config.energy_scale, atoms, self._forces_along(of_edges, edges))

    def products_in_forward_mode(self, graph: Graph) -> bool:
        """Where reverse over reverse, faster for many rows, would keep more than twice the working memory."""
        if not self.traits.conservative or self.backbone.learns():
            return False
        kept = self.backbone.kept_bytes(find_graphs(graph, self.config), graph.positions.element_size())
        return kept * _KEPT_TWICE > 2 * self.backbone.working_memory

    def element_embeddings(self) -> Tensor:
        return self.embedding.weight.detach()[[number - 1 for number in self.elements]]

    def _forces_along(self, of_edges: Tensor | None, edges: Edges) -> Tensor | None:
        """(atoms, 3) eV/Å, the sum over edges that end at an atom, positive away from their sources."""
        if of_edges is None:
            return None
        along = self.out_forces(of_edges) * self.config.force_scale  # (edges, 1)
        return scatter_sum(along * edges.directions, edges.targets, edges.atoms)


def make_head(channels: int, *, bias: bool) -> nn.Sequential:
    """Layers of the same width and a number at the end, without a bias; the activations have no parameters."""
    layers: list[nn.Module] = []
    for _ in range(_HEAD_LAYERS):
        layers += [nn.Linear(channels, channels, bias=bias), ScaledSiLU()]
    return nn.Sequential(*layers, nn.Linear(channels, 1, bias=False))
