"""How atoms and edges of GemNet-OC hear of each other (Gasteiger et al., TMLR 2022, arXiv 2204.02782, section 4)."""

from torch import Tensor, nn

from zoo.gemnet_oc.basis import Basis
from zoo.gemnet_oc.config import GemNetOCConfig
from zoo.gemnet_oc.layers import HALF_ROOT, THIRD_ROOT, AtomUpdate, Dense, EdgeEmbedding, ScaleFactor, residuals
from zoo.ops import scatter_sum


class Bilinear(nn.Module):
    """A linear layer of products of two kinds of channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bilinear = Dense(inputs, outputs, active=False)

    def forward(self, products: Tensor) -> Tensor:
        mixed: Tensor = self.bilinear(products)
        return mixed


class AngularInteraction(nn.Module):
    """What three interactions by distances and angles have in common."""

    def __init__(self, config: GemNetOCConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        down, heard = config.emb_size_trip_in, config.emb_size_trip_out
        self.dense_ba = Dense(inputs, inputs)
        self.mlp_rbf = Dense(config.emb_size_rbf, inputs, active=False)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = Bilinear(config.emb_size_cbf * down, heard)
        self.scale_cbf_sum = ScaleFactor()
        self.down_projection = Dense(inputs, down)
        self.up_projection_ca = Dense(heard, outputs)

    def say(self, values: Tensor, radial: Tensor) -> Tensor:
        """(edges, emb_size_trip_in) What edges let others hear."""
        said: Tensor = self.down_projection(self.scale_rbf(values * self.mlp_rbf(radial)))
        return said


class TripletInteraction(AngularInteraction):
    """Edges of edges: c -> a hears of all b -> a."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__(config, config.emb_size_edge, config.emb_size_edge)
        self.up_projection_ac = Dense(config.emb_size_trip_out, config.emb_size_edge)

    def forward(self, messages: Tensor, basis: Basis) -> Tensor:
        said = self.say(self.dense_ba(messages), basis.triplet_radial)  # (edges, emb_size_trip_in)
        heard = self.scale_cbf_sum(self.mlp_cbf(basis.triplets.hear(said)))  # (edges, emb_size_trip_out)
        return _both_ways(self.up_projection_ca(heard), self.up_projection_ac(heard), basis)


class AtomEdgeInteraction(AngularInteraction):
    """Edges of atoms: c -> a hears of all atoms b near a."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__(config, config.emb_size_atom, config.emb_size_edge)
        self.up_projection_ac = Dense(config.emb_size_trip_out, config.emb_size_edge)

    def forward(self, atoms: Tensor, basis: Basis) -> Tensor:
        values = self.dense_ba(atoms).index_select(0, basis.atom_edge.into.sources)  # (edges, emb_size_atom)
        said = self.say(values, basis.atom_edge_radial)  # (edges, emb_size_trip_in)
        heard = self.scale_cbf_sum(self.mlp_cbf(basis.atom_edge.hear(said)))  # (main edges, emb_size_trip_out)
        return _both_ways(self.up_projection_ca(heard), self.up_projection_ac(heard), basis)


class EdgeAtomInteraction(AngularInteraction):
    """Atoms of edges: a hears of all b -> a, as seen from each c near it."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__(config, config.emb_size_edge, config.emb_size_atom)

    def forward(self, messages: Tensor, basis: Basis) -> Tensor:
        said = self.say(self.dense_ba(messages), basis.edge_atom_radial)  # (main edges, emb_size_trip_in)
        products, out = basis.edge_atom.hear(said), basis.edge_atom.out  # (edges, emb_size_cbf * emb_size_trip_in)
        summed = scatter_sum(self.mlp_cbf(products), out.targets, out.atoms)  # (atoms, emb_size_trip_out)
        heard: Tensor = self.up_projection_ca(self.scale_cbf_sum(summed))  # (atoms, emb_size_atom)
        return heard


class QuadrupletInteraction(nn.Module):
    """Edges of edges two atoms away: c -> a hears of all d -> b by way of all b -> a."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        edge, down, heard = config.emb_size_edge, config.emb_size_quad_in, config.emb_size_quad_out
        self.dense_db = Dense(edge, edge)
        self.mlp_rbf = Dense(config.emb_size_rbf, edge, active=False)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = Dense(config.emb_size_cbf, down, active=False)
        self.scale_cbf = ScaleFactor()
        self.mlp_sbf = Bilinear(config.emb_size_sbf * down, heard)
        self.scale_sbf_sum = ScaleFactor()
        self.down_projection = Dense(edge, down)
        self.up_projection_ca = Dense(heard, edge)
        self.up_projection_ac = Dense(heard, edge)

    def forward(self, messages: Tensor, basis: Basis) -> Tensor:
        quadruplets = basis.quadruplets
        values = self.dense_db(messages) * self.mlp_rbf(basis.quadruplet_radial)  # (edges, emb_size_edge)
        values = self.down_projection(self.scale_rbf(values))  # (edges, emb_size_quad_in)
        values = quadruplets.meet(values)  # (middle, width, emb_size_quad_in)
        values = self.scale_cbf(values * self.mlp_cbf(quadruplets.circular))
        heard = self.scale_sbf_sum(self.mlp_sbf(quadruplets.hear(values)))  # (edges, emb_size_quad_out)
        return _both_ways(self.up_projection_ca(heard), self.up_projection_ac(heard), basis)


class AtomInteraction(nn.Module):
    """Atoms of atoms, by distances."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        atom, down, heard = config.emb_size_atom, config.emb_size_aint_in, config.emb_size_aint_out
        self.bilinear = Dense(config.emb_size_rbf * down, heard, active=False)
        self.scale_rbf_sum = ScaleFactor()
        self.down_projection = Dense(atom, down)
        self.up_projection = Dense(heard, atom)

    def forward(self, atoms: Tensor, basis: Basis) -> Tensor:
        edges = basis.graphs.to_atoms
        values = self.down_projection(atoms).index_select(0, edges.sources)  # (edges, emb_size_aint_in)
        products = basis.atom_radial.transpose(1, 2) @ edges.to_table(values)  # (atoms, emb_size_rbf, emb_size_aint_in)
        heard = self.scale_rbf_sum(self.bilinear(products.flatten(1)))  # (atoms, emb_size_aint_out)
        told: Tensor = self.up_projection(heard)  # (atoms, emb_size_atom)
        return told


def _both_ways(forth: Tensor, back: Tensor, basis: Basis) -> Tensor:
    """(edges, emb_size_edge) What an edge heard for itself and what its counter-edge heard for it."""
    return (forth + back.index_select(0, basis.graphs.counters)) * HALF_ROOT


class InteractionBlock(nn.Module):
    """One block: messages and atoms of all that they hear, then of each other."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        atom, edge, rbf = config.emb_size_atom, config.emb_size_edge, config.emb_size_rbf
        self.dense_ca = Dense(edge, edge)
        self.trip_interaction = TripletInteraction(config)
        self.quad_interaction = QuadrupletInteraction(config)
        self.atom_edge_interaction = AtomEdgeInteraction(config)
        self.edge_atom_interaction = EdgeAtomInteraction(config)
        self.atom_interaction = AtomInteraction(config)
        self.layers_before_skip = nn.Sequential(*residuals(edge, config.num_before_skip))
        self.layers_after_skip = nn.Sequential(*residuals(edge, config.num_after_skip))
        self.atom_emb_layers = nn.Sequential(*residuals(atom, config.num_atom_emb_layers))
        self.atom_update = AtomUpdate(edge, atom, rbf, config.num_atom)
        self.concat_layer = EdgeEmbedding(atom, edge, edge)
        self.residual_m = nn.Sequential(*residuals(edge, config.num_concat))

    def hear(self, atoms: Tensor, messages: Tensor, basis: Basis) -> tuple[Tensor]:
        """(edges, emb_size_edge) What edges hear of edges and atoms around them."""
        own: Tensor = self.dense_ca(messages)  # (edges, emb_size_edge)
        triplets: Tensor = self.trip_interaction(messages, basis)
        quadruplets: Tensor = self.quad_interaction(messages, basis)
        of_atoms: Tensor = self.atom_edge_interaction(atoms, basis)
        return ((own + triplets + quadruplets + of_atoms) / 2,)

    def update(self, atoms: Tensor, messages: Tensor, heard: Tensor, basis: Basis) -> tuple[Tensor, Tensor]:
        """The atoms and messages of the next block."""
        main = basis.graphs.main
        atoms = atoms + self.edge_atom_interaction(messages, basis) + self.atom_interaction(atoms, basis)
        atoms = self.atom_emb_layers(atoms * THIRD_ROOT)  # (atoms, emb_size_atom)
        messages = self.layers_after_skip((messages + self.layers_before_skip(heard)) * HALF_ROOT)
        atoms = (atoms + self.atom_update.update(messages, basis.update_radial, main)) * HALF_ROOT
        told = self.residual_m(self.concat_layer(atoms, messages, main))  # (edges, emb_size_edge)
        return atoms, (messages + told) * HALF_ROOT
