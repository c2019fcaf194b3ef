"""What GemNet-OC sees of distances, angles and dihedral angles (Gasteiger et al., TMLR 2022, arXiv 2204.02782)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.gemnet_oc.config import GemNetOCConfig
from zoo.gemnet_oc.graphs import Edges, Graphs
from zoo.gemnet_oc.layers import Dense, EdgeEmbedding
from zoo.ops import polynomial_envelope

_POWER = 5  # of the envelope
_STRAIGHT = 1e-8  # squared sine of an angle, below which its dihedral angles fade to 90°


@dataclass(frozen=True)
class Angles:
    """Pairs of edges that end at the same atom: what edges ``out`` hear of edges ``into``."""

    out: Edges
    into: Edges
    harmonics: Tensor  # (atoms, out.width * sphericals, into.width) zero where both come from the same image
    radial: Tensor  # (out edges, circular, sphericals)

    def hear(self, values: Tensor) -> Tensor:
        """(into edges, channels) -> (out edges, circular * channels)"""
        channels, sphericals = values.shape[1], self.radial.shape[2]
        summed = self.harmonics @ self.into.to_table(values)  # (atoms, out.width * sphericals, channels)
        summed = self.out.from_table(summed.reshape(self.out.atoms * self.out.width, sphericals * channels))
        summed = self.radial @ summed.reshape(-1, sphericals, channels)  # (out edges, circular, channels)
        return summed.flatten(1)


@dataclass(frozen=True)
class Quadruplets:
    """What edges c -> a hear of edges d -> b by way of edges b -> a."""

    main: Edges
    middle: Edges
    circular: Tensor  # (middle, width, circular) of d -> b -> a; width is that of the main edges
    other: Tensor  # (middle, width, 1) whether d is not a
    dihedrals: Tensor  # (middle, width * sphericals, width) of c and d around b -> a; zero where c is d
    angles: Tensor  # (atoms, width, sphericals, middle.width) of b -> a <- c; zero where c is b
    radial: Tensor  # (main edges, spherical, sphericals²)

    def meet(self, values: Tensor) -> Tensor:
        """(main edges, channels) -> (middle, width, channels), those that end where each middle edge begins."""
        return self.main.to_table(values).index_select(0, self.middle.sources)

    def hear(self, values: Tensor) -> Tensor:
        """(middle, width, channels) -> (main edges, spherical * channels): over all d first, then over all b."""
        atoms, width, sphericals, most = self.angles.shape
        channels = values.shape[2]
        summed = self.dihedrals @ (values * self.other)  # (middle, width * sphericals, channels)
        table = self.middle.to_table(summed.reshape(len(values), width * sphericals * channels))
        table = table.reshape(atoms, most, width, sphericals * channels).transpose(1, 2)
        summed = self.angles @ table  # (atoms, width, sphericals, sphericals * channels)
        summed = self.main.from_table(summed.reshape(atoms * width, sphericals**2 * channels))
        summed = self.radial @ summed.reshape(-1, sphericals**2, channels)  # (main edges, spherical, channels)
        return summed.flatten(1)


@dataclass(frozen=True)
class Basis:
    """What layers are told of the geometry, once for all blocks; radial parts are (edges, emb_size_rbf)."""

    graphs: Graphs
    triplets: Angles  # main edges of main edges
    atom_edge: Angles  # main edges of atoms
    edge_atom: Angles  # atoms of main edges
    quadruplets: Quadruplets
    triplet_radial: Tensor  # of main edges, as all but the next and the last
    atom_edge_radial: Tensor  # of edges between atoms and edges
    edge_atom_radial: Tensor
    quadruplet_radial: Tensor
    update_radial: Tensor
    output_radial: Tensor
    atom_radial: Tensor  # (atoms, to_atoms.width, emb_size_rbf)


class MixedProjection(nn.Module):
    """Weights of the Gaussians for each harmonic.

    The weights are stored (radials, sphericals, channels), but the published models read what comes out of them as
    (channels, sphericals); so they were trained, and so they are read here.
    """

    def __init__(self, radials: int, sphericals: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(radials, sphericals, channels) / math.sqrt(radials * sphericals))

    def forward(self, radial: Tensor) -> Tensor:
        radials, sphericals, channels = self.weight.shape
        mixed = radial @ self.weight.reshape(radials, sphericals * channels)
        return mixed.reshape(-1, channels, sphericals)  # (edges, channels, sphericals)


class RadialProjection(nn.Module):
    """A linear layer under the name that the published weights have."""

    def __init__(self, radials: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, radials) / math.sqrt(radials))

    def forward(self, radial: Tensor) -> Tensor:
        return radial @ self.weight.t()  # (edges, channels)


class Bases(nn.Module):
    """The projections of all bases, shared by the blocks, and the first messages."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        self.config = config
        radials, sphericals = config.num_radial, config.num_spherical
        rbf, cbf, sbf = config.emb_size_rbf, config.emb_size_cbf, config.emb_size_sbf
        self.mlp_rbf_qint = Dense(radials, rbf, active=False)
        self.mlp_cbf_qint = MixedProjection(radials, sphericals, cbf)
        self.mlp_sbf_qint = MixedProjection(radials, sphericals**2, sbf)
        self.mlp_rbf_aeint = Dense(radials, rbf, active=False)
        self.mlp_cbf_aeint = MixedProjection(radials, sphericals, cbf)
        self.mlp_rbf_eaint = Dense(radials, rbf, active=False)
        self.mlp_cbf_eaint = MixedProjection(radials, sphericals, cbf)
        self.mlp_rbf_aint = RadialProjection(radials, rbf)
        self.mlp_rbf_tint = Dense(radials, rbf, active=False)
        self.mlp_cbf_tint = MixedProjection(radials, sphericals, cbf)
        self.mlp_rbf_h = Dense(radials, rbf, active=False)
        self.mlp_rbf_out = Dense(radials, rbf, active=False)
        self.edge_emb = EdgeEmbedding(config.emb_size_atom, radials, config.emb_size_edge)

    def forward(self, atoms: Tensor, graphs: Graphs) -> tuple[Tensor, Basis]:
        """The first messages (main edges, emb_size_edge), and the basis."""
        main, to_edges = self._radial(graphs.main), self._radial(graphs.to_edges)  # (edges, num_radial)
        messages: Tensor = self.edge_emb(atoms, main, graphs.main)
        to_atoms = graphs.to_atoms
        return messages, Basis(
            graphs,
            triplets=self._angles(graphs.main, graphs.main, self.mlp_cbf_tint(main)),
            atom_edge=self._angles(graphs.main, graphs.to_edges, self.mlp_cbf_aeint(main)),
            edge_atom=self._angles(graphs.to_edges, graphs.main, self.mlp_cbf_eaint(to_edges)),
            quadruplets=self._quadruplets(graphs, self.mlp_sbf_qint(main)),
            triplet_radial=self.mlp_rbf_tint(main),
            atom_edge_radial=self.mlp_rbf_aeint(to_edges),
            edge_atom_radial=self.mlp_rbf_eaint(main),
            quadruplet_radial=self.mlp_rbf_qint(main),
            update_radial=self.mlp_rbf_h(main),
            output_radial=self.mlp_rbf_out(main),
            atom_radial=to_atoms.to_table(self.mlp_rbf_aint(self._radial(to_atoms))),
        )

    def _radial(self, edges: Edges) -> Tensor:
        return radial_basis(edges.distances / self.config.basis_cutoff, self.config.num_radial)

    def _angles(self, out: Edges, into: Edges, radial: Tensor) -> Angles:
        """``radial`` (out edges, circular, sphericals)"""
        cosine = out.to_table(out.directions) @ into.to_table(into.directions).transpose(1, 2)  # (atoms, width, width)
        other = out.image_table().unsqueeze(2) != into.image_table().unsqueeze(1)
        harmonics = torch.stack(zonal_harmonics(cosine, other, self.config.num_spherical), dim=2)
        return Angles(out, into, harmonics.flatten(1, 2), radial)

    def _quadruplets(self, graphs: Graphs, radial: Tensor) -> Quadruplets:
        """``radial`` (main edges, spherical, sphericals²)"""
        main, middle, sphericals = graphs.main, graphs.middle, self.config.num_spherical
        directions, images = main.to_table(main.directions), main.image_table()
        ba = middle.directions.unsqueeze(1)  # (middle, 1, 3)
        ca = directions.index_select(0, middle.targets)  # (middle, width, 3)
        db = directions.index_select(0, middle.sources)  # (middle, width, 3)
        c = images.index_select(0, middle.targets)  # (middle, width)
        d = images.index_select(0, middle.sources)  # (middle, width) as seen from b
        d = d + (middle.images - middle.sources * graphs.cells).unsqueeze(1)  # and from a
        dihedral = dihedral_cosine(ca, db, ba)  # (middle, width, width)
        dihedrals = zonal_harmonics(dihedral, c.unsqueeze(2) != d.unsqueeze(1), sphericals)
        circular = torch.stack(zonal_harmonics((db * ba).sum(dim=2), None, sphericals), dim=2)
        circular = circular @ self.mlp_cbf_qint(self._radial(middle)).transpose(1, 2)  # (middle, width, circular)
        return Quadruplets(
            main,
            middle,
            circular=circular,
            other=(d != (middle.targets * graphs.cells).unsqueeze(1)).unsqueeze(2).to(circular.dtype),
            dihedrals=torch.stack(dihedrals, dim=2).flatten(1, 2),
            angles=torch.stack(_between(main, middle, sphericals), dim=2),
            radial=radial,
        )


def _between(main: Edges, middle: Edges, count: int) -> list[Tensor]:
    """Harmonics of the angles of main and middle edges at an atom, each (atoms, main width, middle width)."""
    cosine = main.to_table(main.directions) @ middle.to_table(middle.directions).transpose(1, 2)
    other = main.image_table().unsqueeze(2) != middle.image_table().unsqueeze(1)
    return zonal_harmonics(cosine, other, count)


def radial_basis(fraction: Tensor, count: int) -> Tensor:
    """(edges, count) Gaussians as wide as they are apart, from 0 to 1, under the envelope; fraction (edges, 1)."""
    places = torch.linspace(0, 1, count, dtype=fraction.dtype, device=fraction.device)
    offset = (fraction - places) * (count - 1)  # (edges, count)
    return polynomial_envelope(fraction, _POWER) * torch.exp(-0.5 * offset.square())


def zonal_harmonics(cosine: Tensor, chosen: Tensor | None, count: int) -> list[Tensor]:
    """``√((2l+1)/4π) P_l(cos φ)`` for l < count, zero where ``chosen`` is false, by the recurrence of Legendre.

    Without an angle, so that all derivatives exist where it is 0° or 180°.
    """
    first = torch.ones_like(cosine) if chosen is None else chosen.to(cosine.dtype)
    legendre = [first, cosine * first]
    for degree in range(1, count - 1):
        following = (2 * degree + 1) * cosine * legendre[degree] - degree * legendre[degree - 1]
        legendre.append(following / (degree + 1))
    return [math.sqrt((2 * degree + 1) / (4 * math.pi)) * one for degree, one in enumerate(legendre[:count])]


def dihedral_cosine(ca: Tensor, db: Tensor, ba: Tensor) -> Tensor:
    """``cos θ`` between the planes of c, a, b and of d, b, a, without its angle, whose derivative is infinite at 0.

    Unit vectors ca (middle, c, 3), db (middle, d, 3), ba (middle, 1, 3); returns (middle, c, d). Where three of the
    atoms are in a line there is no such angle, and the architecture no value: where one of the two angles is within
    0.006° of that, the cosine fades to 0, which gives a finite Hessian also there; elsewhere it is exact.
    """
    return _across(ca, ba) @ _across(db, ba).transpose(1, 2)


def _across(edges: Tensor, middle: Tensor) -> Tensor:
    """(middle, edges, 3) The normal, of length one, of the plane of each edge and the middle one."""
    normals: Tensor = torch.linalg.cross(edges, middle.expand_as(edges))  # (middle, edges, 3)
    return normals * _fading_inverse_root(normals.square().sum(dim=2, keepdim=True))


def _fading_inverse_root(squares: Tensor) -> Tensor:
    """``1/√s``, and below ``_STRAIGHT`` a polynomial that is 0 at 0 and joins it with three derivatives."""
    x = (squares / _STRAIGHT).clamp(max=1.0)
    fading = x * (105 - x * (189 - x * (135 - x * 35))) / (16 * math.sqrt(_STRAIGHT))
    inverse: Tensor = squares.clamp(min=_STRAIGHT).rsqrt()
    return torch.where(squares < _STRAIGHT, fading, inverse)
