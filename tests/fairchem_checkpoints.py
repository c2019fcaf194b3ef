"""Small models of fairchem-core with random weights, saved as inference checkpoints."""

import warnings
from pathlib import Path
from typing import Any

import torch

from zoo.files import sha256_file
from zoo.teachers import fairchem
from zoo.teachers.weights import Record, record_path, weights_path

OMOL, OMAT = "uma-s-1p1/omol-teacher", "uma-s-1p1/omat-teacher"
CONSERVING, DIRECT = "esen-sm-conserving-all-omol/teacher", "esen-sm-direct-all-omol/teacher"
NEWER = "uma-s-1p2p1/omat-teacher"
KINDS = [OMOL, OMAT, NEWER, CONSERVING, DIRECT]
TASKS = ("omol", "omat")
CORE = "fairchem.core"
SCALES = {"conserving": 80.0, "direct": 1.4}  # forces are of about 1 eV/Å, though weights are small
REFERENCES = {
    task: [0.0, *(-13.6 * number**2.3 - shift for number in range(1, 100))]
    for task, shift in (("omol", 0), ("omat", 5))
}  # eV


def _backbone(*, mixed: bool, direct: bool, layers: str = "spectral", neighbors: int = 300) -> dict[str, Any]:
    shape = {
        "max_num_elements": 100,
        "sphere_channels": 8,
        "lmax": 2,
        "mmax": 2,
        "otf_graph": True,
        "max_neighbors": neighbors,
        "use_pbc": True,
        "use_pbc_single": True,
        "cutoff": 4.5,
        "edge_channels": 6,
        "distance_function": "gaussian",
        "num_distance_basis": 8,
        "regress_forces": True,
        "regress_stress": not direct,
        "direct_forces": direct,
        "num_layers": 2,
        "hidden_channels": 8,
        "norm_type": "rms_norm_sh",
        "act_type": "gate",
        "ff_type": layers,
        "chg_spin_emb_type": "rand_emb",
        "cs_emb_grad": True,
        "dataset_list": list(TASKS) if mixed else ["omol"],
        "model": f"{CORE}.models.uma.escn_moe.eSCNMDMoeBackbone",
        "num_experts": 4 if mixed else 0,
    }
    if mixed:
        shape |= {
            "moe_layer_type": "pytorch",
            "use_composition_embedding": True,
            "moe_dropout": 0.05,
            "model_version": 1.1,
        }
    return shape


def _heads(*, mixed: bool, direct: bool, newer: bool) -> dict[str, Any]:
    layers = f"{CORE}.models.uma.escn_md"
    if newer:
        return {
            "energyandforcehead": {
                "module": f"{CORE}.models.uma.escn_moe.DatasetSpecificMoEWrapper",
                "head_cls": f"{layers}.MLP_EFS_Head",
                "head_kwargs": {"wrap_property": False},
                "dataset_mapping": {task: task for task in TASKS},
            }
        }
    if mixed:
        return {
            "energyandforcehead": {
                "module": f"{CORE}.models.uma.escn_moe.DatasetSpecificSingleHeadWrapper",
                "head_cls": f"{layers}.MLP_EFS_Head",
                "head_kwargs": {"wrap_property": False},
                "dataset_names": list(TASKS),
            }
        }
    if direct:
        return {
            "omol_energy": {"module": f"{layers}.MLP_Energy_Head", "reduce": "sum"},
            "omol_forces": {"module": f"{layers}.Linear_Force_Head"},
        }
    return {"efs": {"module": f"{layers}.MLP_EFS_Head", "prefix": "omol"}}


def _task(task: str, kind: str, scale: float) -> dict[str, Any]:
    described = {
        "_target_": f"{CORE}.units.mlip_unit.mlip_unit.Task",
        "name": f"{task}_{kind}",
        "level": "system" if kind == "energy" else "atom",
        "property": kind,
        "loss_fn": {
            "_target_": f"{CORE}.modules.loss.DDPMTLoss",
            "loss_fn": {"_target_": f"{CORE}.modules.loss.MAELoss"},
        },
        "out_spec": {"dim": [1] if kind == "energy" else [3], "dtype": "float32"},
        "normalizer": {"_target_": f"{CORE}.modules.normalization.normalizer.Normalizer", "mean": 0.0, "rmsd": scale},
        "datasets": [task],
        "metrics": ["mae"],
    }
    if kind == "energy":
        described["element_references"] = {
            "_target_": f"{CORE}.modules.normalization.element_references.ElementReferences",
            "element_references": {"_target_": "torch.DoubleTensor", "_args_": [REFERENCES[task]]},
        }
    return described


def checkpoint(name: str, *, single_atoms: bool = True, wrap: bool = False, **shape: Any) -> Any:
    """What fairchem saves, of a small model with random weights; ``wrap`` keeps descriptions as omegaconf does."""
    import hydra
    from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
    from omegaconf import OmegaConf

    mixed, direct, newer = name.startswith("uma"), "direct" in name, name == NEWER
    described = {
        "_target_": f"{CORE}.models.base.HydraModel",
        "backbone": _backbone(mixed=mixed, direct=direct, **shape),
        "heads": _heads(mixed=mixed, direct=direct, newer=newer),
        "pass_through_head_outputs": not direct,
        "supports_single_atoms": single_atoms,
    } | ({"model_id": "UMA-S-1.2.1"} if newer else {})
    scale = SCALES["direct" if direct else "conserving"]
    tasks = [_task(task, kind, scale) for task in (TASKS if mixed else TASKS[:1]) for kind in ("energy", "forces")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = hydra.utils.instantiate(described)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    if wrap:
        described, tasks = OmegaConf.create(described), OmegaConf.create(tasks)
    return MLIPInferenceCheckpoint(
        model_config=described,
        model_state_dict=model.state_dict(),
        ema_state_dict=averaged.state_dict(),
        tasks_config=tasks,
    )


def put(name: str, content: Any) -> Path:
    """The file of a teacher in the cache, as if it had been fetched."""
    path = weights_path(name, fairchem.weights(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    record(name, path)
    return path


def record(name: str, path: Path) -> None:
    """Pins a file to what it is."""
    entry = Record(url=fairchem.weights(name).url, digest=f"sha256:{sha256_file(path)}", size=path.stat().st_size)
    record_path(path).write_text(entry.model_dump_json(), encoding="utf-8")
