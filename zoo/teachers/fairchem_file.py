"""A network of fairchem-core from a file of weights, so that nothing that the file names is run.

Such a file is a pickle of tensors and of a description of the layers. PyTorch's restricted reader opens it with a
closed list of classes, and what the description would have called is held against another.
"""

import collections
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from zoo.errors import IntegrityError
from zoo.teachers.dtypes import default_dtype
from zoo.teachers.pickles import read_pickle, unreadable
from zoo.tensors import shown

_CALLED = frozenset(  # by what describes a model and its tasks
    {
        "fairchem.core.models.base.HydraModel",
        "fairchem.core.modules.normalization.element_references.ElementReferences",
        "fairchem.core.modules.normalization.normalizer.Normalizer",
        "fairchem.core.units.mlip_unit.mlip_unit.OutputSpec",
        "fairchem.core.units.mlip_unit.mlip_unit.Task",
        "torch.DoubleTensor",
        "torch.FloatTensor",
        "torch.tensor",
    }
)
_BACKBONES = ("escn_md.eSCNMDBackbone", "escn_moe.eSCNMDMoeBackbone")
_HEADS = (
    *(f"escn_md.{head}" for head in ("MLP_EFS_Head", "MLP_Energy_Head", "Linear_Energy_Head", "Linear_Force_Head")),
    *(f"escn_moe.{head}" for head in ("DatasetSpecificMoEWrapper", "DatasetSpecificSingleHeadWrapper")),
)
_LAYERS = frozenset(  # by their place, or by the short name of a backbone
    {"escnmd_backbone", "escnmd_moe_backbone", *(f"fairchem.core.models.uma.{name}" for name in _BACKBONES + _HEADS)}
)
_NAMES_LAYERS = ("model", "module", "head_cls")
_CHECKPOINT = "a checkpoint of fairchem-core"
_TRAINING = ("loss_fn", "metrics")  # of a task, and of no use here


def open_model(path: Path, dtype: torch.dtype, remedy: str) -> Any:
    """The network of a file, its tasks set up, on the CPU. Raises IntegrityError."""
    from fairchem.core.units.mlip_unit.utils import load_inference_model  # lazy: an optional package

    checkpoint = _read(path, remedy)
    tasks = [{key: value for key, value in task.items() if key not in _TRAINING} for task in checkpoint.tasks_config]
    for called in _described([checkpoint.model_config, tasks]):
        raise IntegrityError(f"{path} wants to call {shown(called)}, which no model of fairchem-core does; {remedy}")
    layers = {"otf_graph": False, "always_use_pbc": False, "activation_checkpointing": False}
    try:
        with default_dtype(dtype), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = load_inference_model(
                str(path), {"backbone": layers}, use_ema=True, return_checkpoint=False, preloaded_checkpoint=checkpoint
            ).module
            network.setup_tasks(tasks)
    except Exception as error:  # hydra's, torch's and fairchem's own
        raise unreadable(path, error, remedy, _CHECKPOINT) from error
    for asked in ("forces", "stress", "hessian"):
        setattr(network.backbone.regress_config, asked, False)  # they are taken here
    return network.eval()


def _read(path: Path, remedy: str) -> Any:
    """What a file holds, in plain containers, read by PyTorch's restricted reader. Raises IntegrityError."""
    from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint  # lazy: an optional package

    classes = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (MLIPInferenceCheckpoint, *_containers())}
    found = read_pickle(path, classes.get, remedy, mapped=True)
    try:
        if not isinstance(found, MLIPInferenceCheckpoint):
            raise TypeError(f"a {type(found).__name__} is no inference checkpoint")
        found.model_config, found.tasks_config = _plain(found.model_config), _plain(found.tasks_config)
        if not all(isinstance(task, dict) for task in found.tasks_config):
            raise TypeError("its tasks are not described")
    except Exception as error:  # omegaconf raises anything
        raise unreadable(path, error, remedy, _CHECKPOINT) from error
    return found


def _containers() -> list[Any]:
    """Of omegaconf, in which descriptions may be kept."""
    import omegaconf  # lazy: it comes with fairchem-core
    from omegaconf.base import ContainerMetadata, Metadata  # lazy: it comes with fairchem-core

    nodes = (
        omegaconf.AnyNode,
        omegaconf.BooleanNode,
        omegaconf.FloatNode,
        omegaconf.IntegerNode,
        omegaconf.StringNode,
    )
    whole = (omegaconf.DictConfig, omegaconf.ListConfig, ContainerMetadata, Metadata)
    return [*nodes, *whole, Any, collections.defaultdict, dict, list, int]


def _plain(described: Any) -> Any:
    """A description as dictionaries and lists; what stands for something else is left as it is."""
    import omegaconf  # lazy: it comes with fairchem-core

    return omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.create(described), resolve=False)


def _described(part: Any) -> Iterator[str]:
    """What a description would have called, or looked up, and is not known to be harmless."""
    if isinstance(part, str):
        yield from [part] if "${" in part else []  # by which omegaconf reads variables of the environment, for one
    elif isinstance(part, list):
        for one in part:
            yield from _described(one)
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from _of_entry(key, value)


def _of_entry(key: str, value: Any) -> Iterator[str]:
    if key == "_target_":
        yield from [] if str(value) in _CALLED else [str(value)]
    elif key in _NAMES_LAYERS and isinstance(value, str):
        yield from [] if value in _LAYERS else [value]
    elif key == "finetune_config" and value is not None:
        yield "another checkpoint"
    else:
        yield from _described(value)
