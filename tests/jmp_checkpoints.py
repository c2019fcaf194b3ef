"""Checkpoints as JMP's training writes them, of networks made here: names, copies, constants, averages, optimiser."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import Tensor

from zoo.gemnet_oc.config import GemNetOCConfig
from zoo.gemnet_oc.layers import ScaleFactor
from zoo.gemnet_oc.network import GemNetOC

TINY = {
    "num_blocks": 2,
    "emb_size_atom": 10,
    "emb_size_edge": 11,
    "emb_size_trip_in": 4,
    "emb_size_trip_out": 5,
    "emb_size_quad_in": 3,
    "emb_size_quad_out": 6,
    "emb_size_aint_in": 7,
    "emb_size_aint_out": 8,
    "emb_size_rbf": 4,
    "emb_size_cbf": 3,
    "emb_size_sbf": 9,
    "num_spherical": 4,
    "num_radial": 12,
    "num_before_skip": 1,
    "num_after_skip": 3,
    "num_concat": 2,
    "num_atom": 2,
    "num_output_afteratom": 1,
    "num_atom_emb_layers": 1,
    "num_global_out_layers": 3,
}
TASKS = ("oc20", "oc22", "ani1x", "transition1x")
STDS = {  # of energies (eV) and forces (eV/Å), by task
    "oc20": (24.9, 0.43),
    "oc22": (25.2, 0.25),
    "ani1x": (2.8701, 2.1314),
    "transition1x": (1.7875, 0.3591),
}
RADIALS = 8  # copies of the Gaussians' constants


@dataclass(frozen=True)
class Made:
    """A checkpoint, and the networks that are in it, by task: what ``convert`` has to find again."""

    content: dict[str, Any]
    averaged: dict[str, GemNetOC]
    last: dict[str, GemNetOC]

    def save(self, path: Path) -> Path:
        torch.save(self.content, path)
        return path


def size(**fields: Any) -> GemNetOCConfig:
    return GemNetOCConfig(**(TINY | fields))


def pre_trained(config: GemNetOCConfig, seed: int = 1) -> Made:
    """With all four pairs of heads, as ``jmp-s.pt`` and ``jmp-l.pt`` have them."""
    config = config.model_copy(update={"energy_bias": True})
    last = _networks(config, TASKS, seed)
    averaged = {task: _near(network, seed) for task, network in last.items()}
    state, averages = _pre_trained_state(last), _pre_trained_state(averaged)
    state.update({f"task_steps.task_{task}": torch.tensor(7) for task in TASKS})
    settings = {
        "backbone": {"num_blocks": config.num_blocks, "scale_file": "configs/scale_files/base.pt", "ln": "pre"},
        "tasks": [{"name": task, "normalization": _normalization(task)} for task in TASKS],
        "meta": {"root": PosixPath("/home/someone"), "tags": ("a", None, True)},
    }
    return Made(_checkpoint(state, _ema(averages), settings), averaged, last)


def fine_tuned(config: GemNetOCConfig, seed: int = 2, *, ema: bool = True) -> Made:
    """With at most one head of each kind, as a fine-tune has it; its task is called md22."""
    last = _networks(config, ("md22",), seed)
    averaged = {task: _near(network, seed) for task, network in last.items()}
    state, averages = (_with_copies(one["md22"].state_dict()) for one in (last, averaged))
    settings = {"normalization": {"y": {"mean": -3.2, "std": 0.646}, "force": {"mean": 0.0, "std": 1.0899}}}
    return Made(_checkpoint(state, _ema(averages) if ema else None, settings), averaged, last)


def trained_names(state: dict[str, Any]) -> list[str]:
    """Those that averages are kept of, in order."""
    dropped = (".rbf.offset", ".rbf.temps", "scale_factor")
    return [
        name
        for name in state
        if not name.endswith(dropped) and ".seq_energy_pre." not in name and not name.startswith("task_steps")
    ]


def _networks(config: GemNetOCConfig, tasks: tuple[str, ...], seed: int) -> dict[str, GemNetOC]:
    """One a task; they share all but the heads."""
    torch.manual_seed(seed)
    networks = {task: GemNetOC(config) for task in tasks}
    first = next(iter(networks.values()))
    for module in first.modules():
        if isinstance(module, ScaleFactor):
            module.scale_factor.uniform_(0.5, 2)
    for network in networks.values():
        network.embedding, network.backbone = first.embedding, first.backbone
    return networks


def _near(network: GemNetOC, seed: int) -> GemNetOC:
    """The same with other numbers in its neighbourhood; equal parameters of two networks stay equal."""
    other = GemNetOC(network.config)
    other.load_state_dict(network.state_dict())
    for place, parameter in enumerate(other.parameters()):
        generator = torch.Generator().manual_seed(seed + 100 * place)
        spread = parameter.detach().std() if parameter.numel() > 1 else torch.tensor(0.1)
        parameter.data += 0.2 * spread * torch.randn(parameter.shape, generator=generator)
    return other


def _pre_trained_state(networks: dict[str, GemNetOC]) -> "OrderedDict[str, Tensor]":
    shared = next(iter(networks.values())).state_dict()
    state: OrderedDict[str, Tensor] = OrderedDict()
    state["embedding.atom_embedding.weight"] = shared["embedding.weight"]
    state.update(_with_copies({name: one for name, one in shared.items() if name.startswith("backbone.")}))
    for kind in ("out_energy", "out_forces"):
        for place, network in enumerate(networks.values()):
            head = getattr(network, kind).state_dict()
            state.update({f"output.{kind}.{place}.{name}": one for name, one in head.items()})
    return state


def _with_copies(state: dict[str, Tensor]) -> "OrderedDict[str, Tensor]":
    """With the constants of the Gaussians, and with the layers of outputs under their second name."""
    found: OrderedDict[str, Tensor] = OrderedDict()
    count = (
        state["backbone.bases.edge_emb.dense.linear.weight"].shape[1]
        - 2 * state["backbone.int_blocks.0.edge_atom_interaction.up_projection_ca.linear.weight"].shape[0]
    )
    waiting: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".layers." not in name or "out_blocks" not in name:
            found.update(waiting)
            waiting = {}
        found[name] = tensor
        if ".layers." in name and "out_blocks" in name:
            waiting[name.replace(".layers.", ".seq_energy_pre.")] = tensor
        if name == "backbone.bases.edge_emb.dense.linear.weight":
            for number in range(RADIALS):
                found[f"backbone.bases.radial_{number}.rbf.offset"] = torch.linspace(0, 1, count)
                found[f"backbone.bases.radial_{number}.rbf.temps"] = torch.tensor(0.5 * (count - 1) ** 2)
    return found


def _ema(averages: "OrderedDict[str, Tensor]") -> tuple[Tensor, ...]:
    return tuple(averages[name] for name in trained_names(averages))


def _checkpoint(
    state: "OrderedDict[str, Tensor]", ema: tuple[Tensor, ...] | None, settings: dict[str, Any]
) -> dict[str, Any]:
    trained = [state[name] for name in trained_names(state)]
    moments = {
        place: {"step": torch.tensor(9.0), "exp_avg": torch.zeros_like(one), "exp_avg_sq": torch.ones_like(one)}
        for place, one in enumerate(trained)
    }
    optimizer: dict[str, Any] = {
        "opt": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(range(len(trained)))}]}
    }
    if ema is not None:
        optimizer |= {"ema": ema, "current_step": 9, "decay": 0.99, "every_n_steps": 1}
    return {
        "epoch": 1,
        "global_step": 9,
        "pytorch-lightning_version": "2.0.9",
        "state_dict": state,
        "loops": {},
        "callbacks": {"ModelCheckpoint": {"dirpath": PosixPath("/runs"), "best_model_score": torch.tensor(0.1)}},
        "optimizer_states": [optimizer],
        "lr_schedulers": [{"last_epoch": 9}],
        "MixedPrecisionPlugin": {"scale": 65536.0},
        "hparams_name": "config",
        "hyper_parameters": settings,
    }


def _normalization(task: str) -> dict[str, dict[str, float]]:
    energy, force = STDS[task]
    return {"y": {"mean": 0.0, "std": energy}, "force": {"mean": 0.0, "std": force}}


# --- files that nobody should trust ---------------------------------------------------------------


@dataclass(frozen=True)
class Storage:
    """Stands for the bytes of a tensor in a pickle, of which it may claim any number."""

    count: int


def write_archive(path: Path, content: Any, data: dict[str, bytes]) -> Path:
    """A checkpoint by hand: the pickle of ``content``, whose ``Storage`` is the file ``data/0``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled(content))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for name, held in data.items():
            archive.writestr(f"archive/data/{name}", held)
    return path


def rewrite(path: Path, to: Path, change: Callable[[str, bytes], bytes], level: int | None = None) -> Path:
    """The same archive with some of its files changed, packed if a level is given."""
    compression = zipfile.ZIP_STORED if level is None else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", compression, compresslevel=level) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    return to


def claimed(count: int, shape: tuple[int, ...]) -> Any:
    """A tensor in a pickle that claims a storage of ``count`` numbers."""
    return _Claimed(count, shape)


@dataclass(frozen=True)
class _Claimed:
    count: int
    shape: tuple[int, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        stride, strides = 1, []
        for length in reversed(self.shape):
            strides.insert(0, stride)
            stride *= length
        arguments = (Storage(self.count), 0, self.shape, tuple(strides), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


def _pickled(content: Any) -> bytes:
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=2)
    pickler.dump(content)
    return stream.getvalue()


class _Pickler(pickle.Pickler):
    def persistent_id(self, one: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", one.count) if isinstance(one, Storage) else None
