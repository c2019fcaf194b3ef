"""GemNet-OC of fairchem-core 1.10.0, with the weights of ours: a reference that runs, where it is there.

As in ``fairchem_gemnet``, stand-ins in plain PyTorch take the place of torch-scatter and torch-sparse.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from ase import Atoms
from fairchem_gemnet import Sparse, default_type, import_model, module, scatter, segment_csr
from torch import Tensor, nn
from torch.autograd import forward_ad

from zoo.gemnet_oc.network import GemNetOC

_SHAPE = ("emb_", "num_", "max_neighbors")  # fields of both configurations
_BOX = 1000.0  # Å, of a molecule
_CONSTANTS = (".offset", ".temps")  # of the radial basis


def reference(ours: GemNetOC) -> nn.Module:
    """Their model of the same shape, with the same weights, in the same type."""
    with default_type(), _unordered():
        theirs = _build(ours)
    for name in ("out_energy", "out_forces"):
        if hasattr(ours, name):  # heads of several layers in the place of their one
            setattr(theirs, name, copy.deepcopy(getattr(ours, name)))
    state = theirs.state_dict()
    names = {_their_name(name): tensor for name, tensor in ours.state_dict().items() if not name.startswith("out_")}
    for name, tensor in names.items():
        assert state[name].shape == tensor.shape, f"{name}: {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        state[name].copy_(tensor)
    aliases_and_heads = {name for name in state if ".seq_energy_pre." in name or name.startswith("out_energy.")}
    aliases_and_heads |= {name for name in state if name.startswith("out_forces.") or name.endswith(_CONSTANTS)}
    assert set(state) == set(names) | aliases_and_heads, sorted(set(state) - set(names) - aliases_and_heads)
    return theirs.to(ours.dtype).eval().requires_grad_(False)


def energy_and_forces(
    theirs: nn.Module, structures: Sequence[Atoms], *, differentiable: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies (structures,), forces (atoms, 3) and the positions (atoms, 3) that these are a function of.

    Without ``differentiable`` no more is kept than forces need.
    """
    data = _data(structures, _dtype(theirs))
    data.pos.requires_grad_(differentiable or not theirs.direct_forces)
    theirs.regress_forces = theirs.direct_forces or differentiable
    with torch.set_grad_enabled(data.pos.requires_grad):
        energy, forces = _ask(theirs, data)
        if forces is None:
            forces = -torch.autograd.grad(energy.sum(), data.pos)[0]
    return energy.detach(), forces, data.pos


def ask_reference(theirs: nn.Module, structures: Sequence[Atoms], rows: Sequence[int]) -> tuple[Tensor, ...]:
    """Energies (structures,), forces (atoms, 3) and rows of the Jacobian of the forces (rows, atoms, 3)."""
    energy, forces, positions = energy_and_forces(theirs, structures, differentiable=True)
    jacobian = [torch.autograd.grad(forces.flatten()[row], positions, retain_graph=True)[0] for row in rows]
    return energy, forces.detach(), torch.stack(jacobian)


def tangent_of_forces(theirs: nn.Module, atoms: Atoms, along: Tensor) -> Tensor:
    """(atoms, 3) Direct forces differentiated along a direction (atoms, 3), in forward mode."""
    data = _data([atoms], _dtype(theirs))
    with torch.no_grad(), forward_ad.dual_level():
        data.pos = forward_ad.make_dual(data.pos, along)
        _, forces = _ask(theirs, data)
        return forward_ad.unpack_dual(forces).tangent


def _dtype(theirs: nn.Module) -> torch.dtype:
    return next(theirs.parameters()).dtype


def _ask(theirs: nn.Module, data: SimpleNamespace) -> tuple[Tensor, Tensor | None]:
    with default_type(data.pos.dtype), _nothing_rounded(data.pos.dtype):
        got = theirs(data)
    return got["energy"].flatten(), got.get("forces")


def _build(ours: GemNetOC) -> nn.Module:
    config = ours.config
    stand_ins = {
        "torch_scatter": module("torch_scatter", scatter=scatter, segment_csr=segment_csr, segment_coo=_segment_coo),
        "torch_sparse": module("torch_sparse", SparseTensor=Sparse),
    }
    return import_model("fairchem.core.models.gemnet_oc.gemnet_oc", stand_ins).GemNetOC(
        **{name: value for name, value in dict(config).items() if name.startswith(_SHAPE)},
        direct_forces=config.forces == "direct",
        regress_forces=True,
        use_pbc=True,
        otf_graph=True,
        cutoff=config.cutoff,
        cutoff_qint=config.cutoff,
        cutoff_aeaint=config.cutoff,
        cutoff_aint=config.cutoff,
        rbf={"name": "gaussian"},
        envelope={"name": "polynomial", "exponent": 5},
        cbf={"name": "spherical_harmonics"},
        sbf={"name": "legendre_outer"},
        quad_interaction=True,
        atom_edge_interaction=True,
        edge_atom_interaction=True,
        atom_interaction=True,
        qint_tags=[0, 1, 2],
        activation="silu",
    )


def _data(structures: Sequence[Atoms], dtype: torch.dtype) -> SimpleNamespace:
    counts = torch.tensor([len(atoms) for atoms in structures])
    cells = [torch.as_tensor(atoms.cell.array) if atoms.pbc.all() else _BOX * torch.eye(3) for atoms in structures]
    whole = sum(structures[1:], structures[0])
    return SimpleNamespace(
        pos=torch.as_tensor(whole.positions).to(dtype),
        cell=torch.stack([cell.float() for cell in cells]),  # they compute with cells in float32
        pbc=torch.stack([torch.as_tensor(atoms.pbc) for atoms in structures]),
        natoms=counts,
        batch=torch.arange(len(structures)).repeat_interleave(counts),
        atomic_numbers=torch.as_tensor(whole.numbers),
        tags=torch.full((len(whole),), 2),
    )


def _their_name(ours: str) -> str:
    if ours == "embedding.weight":
        return "atom_emb.embeddings.weight"
    return ours.removeprefix("backbone.").removeprefix("bases.").replace(".out_mlp.", ".")


@contextmanager
def _unordered() -> Iterator[None]:
    """Without the orthogonal matrices that they begin with, which take minutes; other weights come in their place."""
    before = torch.nn.init.orthogonal_
    torch.nn.init.orthogonal_ = lambda tensor, *_: tensor
    try:
        yield
    finally:
        torch.nn.init.orthogonal_ = before


@contextmanager
def _nothing_rounded(dtype: torch.dtype) -> Iterator[None]:
    """They make float32 of what goes into a head."""
    before = torch.Tensor.float
    torch.Tensor.float = lambda tensor: tensor.to(dtype)
    try:
        yield
    finally:
        torch.Tensor.float = before


def _segment_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None, reduce: str = "sum"
) -> Tensor:
    assert out is None, "a new tensor only"
    return scatter(src, index, dim_size=dim_size, reduce=reduce)
