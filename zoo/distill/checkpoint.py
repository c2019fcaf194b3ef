"""The state of a training run in one safetensors file: written whole or not at all, and no pickle."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zoo.errors import ConfigError, IntegrityError
from zoo.files import atomic_write
from zoo.students import Student


@dataclass
class TrainingState:
    """What changes during training."""

    student: Student
    average: dict[str, Tensor]  # exponential moving average of the parameters
    optimizer: torch.optim.AdamW
    step: int = 0

    def names(self) -> list[str]:
        """Parameters in the order the optimizer knows them."""
        return [name for name, _ in self.student.named_parameters()]


def save_checkpoint(path: Path, state: TrainingState, inputs: str) -> None:
    """Writes the state; ``inputs`` is the digest of what the run was started from."""
    arrays = {f"student.{name}": tensor for name, tensor in state.student.state_dict().items()}
    arrays |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    moments = state.optimizer.state_dict()["state"]
    for number, name in enumerate(state.names()):
        arrays |= {f"optimizer.{name}.{key}": value for key, value in moments.get(number, {}).items()}
    metadata = {"state": json.dumps({"format": 1, "inputs": inputs, "step": state.step}, sort_keys=True)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(arrays.items())}
    atomic_write(path, save(contiguous, metadata=metadata))


def load_checkpoint(path: Path, state: TrainingState, inputs: str) -> None:
    """Reads the state back into ``state``.

    Raises IntegrityError for a broken file, ConfigError for one of a run with other inputs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})["state"])
            arrays = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise IntegrityError(
            f"{path} cannot be read ({error}); delete the folder {path.parent.parent} and run the same again"
        ) from error
    if found["inputs"] != inputs:
        raise ConfigError(f"{path} belongs to other settings; choose another --run, or pass --replace to start anew")
    state.step = int(found["step"])
    state.student.load_state_dict(_under("student.", arrays))
    state.average.update(_under("average.", arrays))
    moments = _under("optimizer.", arrays)
    saved = state.optimizer.state_dict()
    saved["state"] = {
        number: {key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for number, name in enumerate(state.names())
        if f"{name}.step" in moments
    }
    state.optimizer.load_state_dict(saved)


def _under(prefix: str, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in arrays.items() if key.startswith(prefix)}
