"""The direct-force PaiNN of fairchem-core 1.10.0, run where it is installed, and how its weights are named and drawn.

Its packages are imported without their ``__init__``, which want more than PaiNN needs; torch-scatter is stood in for.
"""

import importlib
import importlib.metadata
import itertools
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from zoo.students import PaiNNDT

_NAMES = (  # ours, published
    (r"^embedding\.weight", "atom_emb.embeddings.weight"),
    (r"^messages\.(\d+)\.phi", r"message_layers.\1.x_proj"),
    (r"^messages\.(\d+)\.filter", r"message_layers.\1.rbf_proj"),
    (r"^messages\.(\d+)\.norm", r"message_layers.\1.x_layernorm"),
    (r"^updates\.(\d+)\.mix", r"update_layers.\1.vec_proj"),
    (r"^updates\.(\d+)\.gate", r"update_layers.\1.xvec_proj"),
    (r"^energy_readout", "out_energy"),
    (r"^force_readout\.(\d)\.measured", r"out_forces.output_network.\1.vec1_proj"),
    (r"^force_readout\.(\d)\.passed", r"out_forces.output_network.\1.vec2_proj"),
    (r"^force_readout\.(\d)\.gate", r"out_forces.output_network.\1.update_net"),
)


def published_name(ours: str) -> str:
    """The name of a parameter in the published layout."""
    for pattern, published in _NAMES:
        if re.match(pattern, ours):
            return re.sub(pattern, published, ours)
    raise KeyError(ours)


def drawn_weight(name: str, shape: tuple[int, ...], salt: str) -> Tensor:
    """Weights that anyone can make again: by the name in the published layout."""
    weight = np.random.default_rng(zlib.crc32((salt + name).encode())).standard_normal(shape)
    if len(shape) == 1:
        return torch.from_numpy(0.1 * weight + float(name.endswith("layernorm.weight")))
    if not name.startswith("atom_emb"):
        weight = weight - weight.mean(axis=-1, keepdims=True)
        weight = weight / weight.std(axis=-1, ddof=1, keepdims=True) / np.sqrt(shape[-1])
    return torch.from_numpy(weight)


def draw_weights(model: PaiNNDT, salt: str, factors: list[float]) -> None:
    """Sets all weights of a student in float64."""
    for name, parameter in model.named_parameters():
        if name != "factors":
            parameter.data.copy_(drawn_weight(published_name(name), tuple(parameter.shape), salt))
    model.factors.data.copy_(torch.tensor(factors[: len(model.factors)], dtype=torch.float64))


def reference(shape: dict[str, Any], salt: str, factors: list[float]) -> nn.Module:
    """fairchem's model with the same weights; the default dtype must be float64."""
    fields = {"channels": "hidden_channels", "layers": "num_layers", "radials": "num_rbf"}
    model = _import_painn()(**{fields.get(key, key): value for key, value in shape.items()})
    for name, parameter in model.named_parameters():
        if not name.endswith("scale_factor"):
            parameter.data.copy_(drawn_weight(name, tuple(parameter.shape), salt))
    for layer in range(shape["layers"]):
        getattr(model, f"upd_out_scalar_scale_{layer}").scale_factor.data.fill_(factors[layer])
    return model


def ask_reference(model: nn.Module, atoms: Atoms, rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Energy (), forces (atoms, 3) and derivatives (rows, atoms, 3) of forces[atom][axis]."""
    cell = atoms.cell.array if atoms.pbc.all() else 100.0 * np.eye(3)
    positions = torch.from_numpy(atoms.positions.copy()).requires_grad_()
    data = SimpleNamespace(
        pos=positions,
        atomic_numbers=torch.from_numpy(atoms.numbers),
        batch=torch.zeros(len(atoms), dtype=torch.int64),
        natoms=torch.tensor([len(atoms)]),
        cell=torch.tensor(cell, dtype=torch.float32)[None],
    )
    got = model(data)
    slopes = [torch.autograd.grad(got["forces"][atom, axis], positions, retain_graph=True)[0] for atom, axis in rows]
    return got["energy"].detach()[0], got["forces"].detach(), torch.stack(slopes)


def _import_painn() -> Callable[..., nn.Module]:
    root = Path(str(importlib.metadata.distribution("fairchem-core").locate_file("fairchem")))
    for below in ((), ("core",), ("core", "models"), ("core", "models", "gemnet")):
        _stub(".".join(("fairchem", *below)), __path__=[str(root.joinpath(*below))])
    from torch_geometric.nn import MessagePassing

    MessagePassing.jittable = lambda layer: layer  # newer versions have no such method, and need none
    before = sys.modules.pop("torch_scatter", None)
    _stub("torch_scatter", scatter=_scatter, segment_coo=_segment_coo, segment_csr=_segment_csr)
    try:
        return importlib.import_module("fairchem.core.models.painn.painn").PaiNN
    finally:
        del sys.modules["torch_scatter"]
        if before is not None:
            sys.modules["torch_scatter"] = before


def _stub(name: str, **content: Any) -> None:
    module = sys.modules.setdefault(name, ModuleType(name))
    for key, value in content.items():
        setattr(module, key, value)


def _scatter(values: Tensor, index: Tensor, dim: int = 0, dim_size: int | None = None, reduce: str = "sum") -> Tensor:
    size = int(index.max()) + 1 if dim_size is None else dim_size
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


def _segment_coo(values: Tensor, index: Tensor, dim_size: int | None = None) -> Tensor:
    return _scatter(values, index, dim_size=dim_size)


def _segment_csr(values: Tensor, starts: Tensor) -> Tensor:
    return torch.stack([values[a:b].sum(dim=0) for a, b in itertools.pairwise(starts)])
