"""Recomputes the golden numbers of GemNet-OC and says how far ours are from them.

A file in the layout of the golden gemnet_oc.json: sizes tiny (by its ``tiny_config``), s and l, forces direct or from
the gradient, any salt and geometry; weights are made by the rule of its README. Agreement is judged per array as
max|difference| / max|reference|. Exits 1 beyond the tolerances.

    scripts/check_golden FILE
"""

import argparse
import json
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from zoo.gemnet_oc.config import JMP_L, JMP_S, GemNetOCConfig
from zoo.gemnet_oc.network import GemNetOC
from zoo.neighbors import build_graph

TOLERANCES = {
    "float64": {"energy": 1e-10, "forces": 1e-10, "dF_dr": 1e-10},
    "float32": {"energy": 1e-5, "forces": 1e-5, "dF_dr": 1e-4},
}


def config_of(case: dict[str, Any], stored: dict[str, Any]) -> GemNetOCConfig:
    """The configuration of a case."""
    sizes = {"s": JMP_S, "l": JMP_L}
    if case["size"] in sizes:
        base = sizes[case["size"]]
    elif case["size"] == "tiny":
        base = GemNetOCConfig(**stored["tiny_config"])
    else:
        raise SystemExit(f"size {case['size']!r} of a case; expected tiny, s or l")
    return base.model_copy(update={"forces": case["forces_from"]})


def build(config: GemNetOCConfig, salt: str, scale_factors: dict[str, float]) -> GemNetOC:
    """The model with the weights of the rule, in float64."""
    model = GemNetOC(config).double()
    for name, tensor in model.state_dict().items():
        tensor.copy_(weight(name, tuple(tensor.shape), salt, scale_factors))
    return model.eval().requires_grad_(False)


def weight(name: str, shape: tuple[int, ...], salt: str, scale_factors: dict[str, float]) -> Tensor:
    """The weight of that name by the rule."""
    if name.endswith(".scale_factor"):
        value = next(value for key, value in scale_factors.items() if f"{key}.scale_factor" in name)
        return torch.tensor(value, dtype=torch.float64)
    drawn = np.random.default_rng(zlib.crc32((salt + name).encode())).standard_normal(shape)
    if len(shape) == 1:
        return torch.from_numpy(0.1 * drawn)
    if name != "embedding.weight":
        axes = (-1,) if len(shape) == 2 else (0, 1)
        drawn -= drawn.mean(axis=axes, keepdims=True)
        drawn /= drawn.std(axis=axes, ddof=1, keepdims=True)
        drawn /= np.sqrt(np.prod([shape[axis] for axis in axes]))
    return torch.from_numpy(drawn)


def ask(model: GemNetOC, case: dict[str, Any]) -> dict[str, Tensor]:
    """Energy (1,), forces (atoms, 3) and, where the case has rows, of the Jacobian of the forces."""
    atoms = Atoms(numbers=case["numbers"], positions=case["positions"])
    graph = build_graph(atoms, model.cutoff, dtype=model.dtype)
    got = model.predict(graph)
    assert got.forces is not None
    found = {"energy": got.energy, "forces": got.forces}
    if case["jacobian_rows"]:
        rows = torch.tensor([3 * row["atom"] + row["axis"] for row in case["jacobian_rows"]])
        found["dF_dr"] = -model.hessian(graph, rows).reshape(len(rows), -1, 3)  # (rows, atoms, 3)
    return found


def deviations(model: GemNetOC, case: dict[str, Any]) -> dict[str, float]:
    """The largest deviation of each array."""
    expected = {
        "energy": [case["energy"]],
        "forces": case["forces"],
        "dF_dr": [row["dF_dr"] for row in case["jacobian_rows"]],
    }
    found = {}
    for name, got in ask(model, case).items():
        reference = torch.tensor(expected[name], dtype=torch.float64)
        found[name] = float((got.double() - reference).abs().max() / reference.abs().max())
    return found


def wrong_names(model: GemNetOC, expected: dict[str, list[int]]) -> list[str]:
    """Parameters that only one side has, or that have another shape there."""
    got = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return sorted(name for name in got.keys() | expected.keys() if got.get(name) != expected.get(name))


def check_case(case: dict[str, Any], stored: dict[str, Any], dtype: str) -> bool:
    """Prints the deviations of a case; whether they are within the tolerances."""
    start = time.perf_counter()
    key = f"{case['size']}-{case['forces_from']}"
    model = build(config_of(case, stored), case["salt"], stored["scale_factors"])
    wrong = wrong_names(model, stored["shapes"][key]) if key in stored.get("shapes", {}) else []
    found = deviations(model.to(getattr(torch, dtype)), case)
    good = not wrong and all(found[name] <= TOLERANCES[dtype][name] for name in found)
    numbers = "  ".join(f"{name} {found[name]:.1e}" for name in found)
    seconds = time.perf_counter() - start
    print(f"{'ok   ' if good else 'WRONG'} {key} {case['geometry']} {dtype}: {numbers}  ({seconds:.0f} s)", flush=True)
    for name in wrong:
        print(f"      {name} is not of the shape that the file names")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=TOLERANCES, default="float64")
    parser.add_argument("--only", default="", help="cases whose size, forces and geometry, as printed, hold this")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    stored = json.loads(arguments.file.read_text())
    cases = [
        case for case in stored["cases"] if arguments.only in f"{case['size']}-{case['forces_from']} {case['geometry']}"
    ]
    if not cases:
        print(f"no case of {arguments.file} holds {arguments.only!r}", file=sys.stderr)
        return 1
    good = [check_case(case, stored, arguments.dtype) for case in cases]
    print(f"{sum(good)} of {len(good)} cases within the tolerances of {arguments.dtype}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
