"""GemNet-T and GemNet-dT of fairchem-core 1.10.0, with the weights of ours: a reference that runs, where it is there.

Only its model is imported: stub packages stand in the place of those whose import asks for all that fairchem needs,
and three functions in plain PyTorch in the place of torch-scatter and torch-sparse.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from ase import Atoms
from torch import Tensor, nn

from zoo.students import GemNetDTConfig, GemNetT

# ours -> theirs, the first part that fits, in this order
_NAMES = (
    ("embedding.weight", "atom_emb.embeddings.weight"),
    ("edge_embedding.dense.", "edge_emb.dense.linear."),
    ("triplet_radial.", "mlp_rbf3.linear."),
    ("triplet_circular.", "mlp_cbf3."),
    ("atom_radial.", "mlp_rbf_h.linear."),
    ("output_radial.", "mlp_rbf_out.linear."),
)
_NAMES_IN_BLOCKS = (
    ("own.", "dense_ca.linear."),
    ("triplets.message.", "trip_interaction.dense_ba.linear."),
    ("triplets.radial.", "trip_interaction.mlp_rbf.linear."),
    ("triplets.radial_scale.factor", "trip_interaction.scale_rbf.scale_factor"),
    ("triplets.down.", "trip_interaction.down_projection.linear."),
    ("triplets.bilinear.", "trip_interaction.mlp_cbf."),
    ("triplets.sum_scale.factor", "trip_interaction.scale_cbf_sum.scale_factor"),
    ("triplets.up.", "trip_interaction.up_projection_ca.linear."),
    ("triplets.up_counter.", "trip_interaction.up_projection_ac.linear."),
    ("before.", "layers_before_skip."),
    ("after.", "layers_after_skip."),
    ("last.", "residual_m."),
    ("embedding.dense.", "concat_layer.dense.linear."),
    ("update.radial.", "atom_update.dense_rbf.linear."),
    ("update.scale.factor", "atom_update.scale_sum.scale_factor"),
    ("update.layers.", "atom_update.layers."),
)
_NAMES_IN_READOUTS = (
    ("update.radial.", "dense_rbf.linear."),
    ("update.scale.factor", "scale_sum.scale_factor"),
    ("update.layers.", "layers."),
    ("energy.", "out_energy.linear."),
)
_NAMES_IN_FORCE_READOUTS = (
    ("layers.", "seq_forces."),
    ("radial.", "dense_rbf_F.linear."),
    ("scale.factor", "scale_rbf_F.scale_factor"),
    ("force.", "out_forces.linear."),
)


def reference(ours: GemNetT) -> nn.Module:
    """Their model of the same shape, with the same weights, in float64."""
    with default_type():
        theirs = _build(ours)
    state = theirs.state_dict()
    for name, tensor in ours.named_parameters():
        _set(state, _their_name(name), _their_layout(name, tensor, ours))
    left = [name for name in state if not name.endswith((".offset", ".temps")) and ".seq_energy." not in name]
    assert len(left) == len(list(ours.named_parameters())), sorted(left)
    return theirs.eval()


def _build(ours: GemNetT) -> nn.Module:
    config = ours.config
    stand_ins = {
        "torch_scatter": module("torch_scatter", scatter=scatter, segment_csr=segment_csr),
        "torch_sparse": module("torch_sparse", SparseTensor=Sparse),
    }
    return import_model("fairchem.core.models.gemnet.gemnet", stand_ins).GemNetT(
        num_spherical=config.sphericals,
        num_radial=config.radials,
        num_blocks=config.blocks,
        emb_size_atom=config.atom_channels,
        emb_size_edge=config.edge_channels,
        emb_size_trip=config.triplet_channels,
        emb_size_rbf=config.radial_channels,
        emb_size_cbf=config.circular_channels,
        emb_size_bil_trip=config.bilinear_channels,
        num_before_skip=config.before_residuals,
        num_after_skip=config.after_residuals,
        num_concat=config.last_residuals,
        num_atom=config.atom_residuals,
        direct_forces=isinstance(config, GemNetDTConfig),
        cutoff=config.cutoff,
        max_neighbors=config.max_neighbors or 1000,
        otf_graph=True,
        activation="silu",
        num_elements=len(ours.elements),
    )


def ask_reference(theirs: nn.Module, atoms: Atoms, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Energy (), forces (atoms, 3) and rows of the Jacobian of the forces (rows, atoms, 3)."""
    cell = atoms.cell.array if atoms.pbc.all() else [[1000.0, 0, 0], [0, 1000.0, 0], [0, 0, 1000.0]]
    positions = torch.as_tensor(atoms.positions, dtype=torch.float64).requires_grad_()
    data = SimpleNamespace(
        pos=positions,
        cell=torch.as_tensor(cell, dtype=torch.float32)[None],  # they compute with cells in float32
        pbc=torch.as_tensor(atoms.pbc)[None],
        natoms=torch.tensor([len(atoms)]),
        batch=torch.zeros(len(atoms), dtype=torch.int64),
        atomic_numbers=torch.as_tensor(atoms.numbers),
    )
    with default_type():
        got = theirs(data)
    forces = got["forces"]
    jacobian = [torch.autograd.grad(forces.flatten()[row], positions, retain_graph=True)[0] for row in rows]
    return got["energy"][0, 0].detach(), forces.detach(), torch.stack(jacobian)


@contextmanager
def default_type(dtype: torch.dtype = torch.float64) -> Iterator[None]:
    """They make tensors of the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _their_name(ours: str) -> str:
    for prefix, theirs, names in (
        ("blocks.", "int_blocks.", _NAMES_IN_BLOCKS),
        ("readouts.", "out_blocks.", _NAMES_IN_READOUTS),
        ("force_readouts.", "out_blocks.", _NAMES_IN_FORCE_READOUTS),
    ):
        if ours.startswith(prefix):
            number, rest = ours.removeprefix(prefix).split(".", 1)
            return f"{theirs}{number}.{_renamed(rest, names)}"
    return _renamed(ours, _NAMES)


def _renamed(name: str, names: tuple[tuple[str, str], ...]) -> str:
    ours, theirs = next(pair for pair in names if name.startswith(pair[0]))
    rest = name.removeprefix(ours)
    if rest.count(".") == 3:  # <layer>.layers.<dense>.weight of a residual
        layer, _, dense, _ = rest.split(".")
        rest = f"{layer}.dense_mlp.{dense}.linear.weight"
    elif rest.count(".") == 1:  # <layer>.weight of a dense one
        rest = rest.replace(".weight", ".linear.weight")
    return theirs + rest


def _their_layout(name: str, tensor: Tensor, ours: GemNetT) -> Tensor:
    config = ours.config
    if name == "triplet_circular.weight":
        return tensor.reshape(config.circular_channels, config.sphericals, config.radials).permute(1, 2, 0)
    if name.endswith("bilinear.weight"):
        return tensor.reshape(-1, config.circular_channels, config.triplet_channels).permute(2, 1, 0)
    return tensor


def _set(state: dict[str, Tensor], name: str, value: Tensor) -> None:
    assert state[name].shape == value.shape, f"{name}: {tuple(state[name].shape)}, not {tuple(value.shape)}"
    state[name].copy_(value.detach())


# --- what their model imports ---------------------------------------------------------------------


def import_model(name: str, stand_ins: dict[str, ModuleType]) -> ModuleType:
    """A module of fairchem, with these in the place of the packages that it names."""
    if "fairchem" not in sys.modules:
        folders = list(importlib.util.find_spec("fairchem").submodule_search_locations)
        for package in ("fairchem", "fairchem.core", "fairchem.core.models"):
            _stub(package, folders)
    before = {package: sys.modules.pop(package, None) for package in stand_ins}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module(name)
    finally:
        for package, module in before.items():
            del sys.modules[package]
            if module is not None:
                sys.modules[package] = module


def _stub(name: str, folders: list[str]) -> None:
    """A package of which nothing runs but what is imported from below it."""
    below = name.replace("fairchem", "", 1).replace(".", "/")
    sys.modules[name] = module(name, __path__=[folder + below for folder in folders])
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, sys.modules[name])


def module(name: str, **content: Any) -> ModuleType:
    """A module of that name that holds this."""
    made = ModuleType(name)
    vars(made).update(content)
    return made


def scatter(src: Tensor, index: Tensor, dim: int = 0, dim_size: int | None = None, reduce: str = "sum") -> Tensor:
    assert dim == 0, "the first axis only"
    assert reduce in ("sum", "add"), reduce
    size = int(index.max()) + 1 if dim_size is None else int(dim_size)
    return src.new_zeros(size, *src.shape[1:]).index_add(0, index, src)


def segment_csr(src: Tensor, indptr: Tensor, reduce: str = "sum") -> Tensor:
    assert reduce == "sum", reduce
    total = torch.cat([src.new_zeros(1), src.cumsum(0)])
    return total[indptr[1:]] - total[indptr[:-1]]


class Sparse:
    """A sparse matrix with a number in each entry, of which rows are chosen, also several times."""

    def __init__(
        self, row: Tensor, col: Tensor, value: Tensor, sparse_sizes: tuple[int, int], is_sorted: bool = False
    ) -> None:
        order = torch.arange(len(row)) if is_sorted else (row * (int(sparse_sizes[1]) + 1) + col).argsort(stable=True)
        self.rows, self.columns, self.values = row[order], col[order], value[order]
        self.sizes = (int(sparse_sizes[0]), int(sparse_sizes[1]))
        self.storage = SimpleNamespace(row=lambda: self.rows, col=lambda: self.columns, value=lambda: self.values)

    def set_value_(self, value: Tensor, layout: str | None = None) -> "Sparse":
        assert layout in ("coo", None), layout
        self.values = value
        return self

    def coo(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.rows, self.columns, self.values

    def sparse_size(self, dim: int) -> int:
        return self.sizes[dim]

    def sparse_sizes(self) -> tuple[int, int]:
        return self.sizes

    def __getitem__(self, index: Tensor) -> "Sparse":
        counts = torch.bincount(self.rows, minlength=self.sizes[0])
        starts = counts.cumsum(0) - counts
        new_rows = torch.arange(len(index)).repeat_interleave(counts[index])
        within = torch.arange(len(new_rows)) - (counts[index].cumsum(0) - counts[index])[new_rows]
        chosen = starts[index][new_rows] + within
        return Sparse(new_rows, self.columns[chosen], self.values[chosen], (len(index), self.sizes[1]), is_sorted=True)
