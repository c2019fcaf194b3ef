"""The state of a training run in one safetensors file: written whole or not at all, and no pickle."""

import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from zoo.errors import ConfigError, IntegrityError
from zoo.files import atomic_write
from zoo.students import Student

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_BETTER = 1 - 1e-4  # of the best error: what is less is better, as PyTorch's ReduceLROnPlateau has it


class Apprentice(nn.Module):
    """All that is trained: the student, and what compares it with its teacher and is thrown away afterwards."""

    def __init__(self, student: Student, projection: nn.Linear | None) -> None:
        super().__init__()
        self.student = student
        self.projection = projection  # from the student's node features to the teacher's


@dataclass(frozen=True)
class Plateau:
    """How the validation error stands to the best before, and how often the learning rate fell for it."""

    best: float | None = None
    waited: int = 0  # validations since the best, or since the last fall
    falls: int = 0

    def after(self, error: float, patience: int) -> "Plateau":
        """What it is after one more validation: more than ``patience`` of them in vain make the learning rate fall."""
        if self.best is None or error < self.best * _BETTER:
            return Plateau(error, 0, self.falls)
        if self.waited < patience:
            return Plateau(self.best, self.waited + 1, self.falls)
        return Plateau(self.best, 0, self.falls + 1)


@dataclass
class TrainingState:
    """What changes during training."""

    apprentice: Apprentice
    average: dict[str, Tensor]  # exponential moving average of the student's parameters
    optimizer: torch.optim.AdamW
    step: int = 0
    switched: bool = False  # whether the weight of the Hessian was lowered
    best: tuple[float, int] | None = None  # the lowest validation force error (eV/Å) and its step
    plateau: Plateau | None = None  # where the schedule is of that kind

    @property
    def student(self) -> Student:
        return self.apprentice.student

    def names(self) -> list[str]:
        """Parameters in the order the optimizer knows them."""
        return [name for name, _ in self.apprentice.named_parameters()]


def save_checkpoint(path: Path, state: TrainingState, inputs: str) -> None:
    """Writes the state; ``inputs`` is the digest of what the run was started from."""
    arrays = {f"apprentice.{name}": tensor for name, tensor in state.apprentice.state_dict().items()}
    arrays |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    moments = state.optimizer.state_dict()["state"]
    for number, name in enumerate(state.names()):
        arrays |= {f"optimizer.{name}.{key}": value for key, value in moments.get(number, {}).items()}
    facts: dict[str, Any] = {
        "format": 2,
        "inputs": inputs,
        "step": state.step,
        "switched": state.switched,
        "best": state.best,
    }
    if state.plateau is not None:
        facts["plateau"] = astuple(state.plateau)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(arrays.items())}
    atomic_write(path, save(contiguous, metadata={"state": json.dumps(facts, sort_keys=True)}))


def load_checkpoint(path: Path, state: TrainingState, inputs: str) -> None:
    """Reads the state back into ``state``.

    Raises IntegrityError for a broken file, ConfigError for one of a run with other inputs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})["state"])
            arrays = {key: file.get_tensor(key) for key in sorted(file.keys())}
        same = found["inputs"] == inputs
        if same:
            _restore(state, found, arrays)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise IntegrityError(
            f"{path} cannot be read ({reason}); delete the folder {path.parent.parent} and run the same again"
        ) from error
    if not same:
        raise ConfigError(f"{path} belongs to other settings; choose another --run, or pass --replace to start anew")


def _restore(state: TrainingState, found: dict[str, Any], arrays: dict[str, Tensor]) -> None:
    state.step, state.switched = int(found["step"]), bool(found["switched"])
    state.best = None if found["best"] is None else (float(found["best"][0]), int(found["best"][1]))
    if state.plateau is not None:
        best, waited, falls = found["plateau"]
        state.plateau = Plateau(None if best is None else float(best), int(waited), int(falls))
    state.apprentice.load_state_dict(_under("apprentice.", arrays))
    state.average.update(_under("average.", arrays))
    moments = _under("optimizer.", arrays)
    keys = (*_MOMENTS, "max_exp_avg_sq") if state.optimizer.defaults["amsgrad"] else _MOMENTS
    saved = state.optimizer.state_dict()
    saved["state"] = {
        number: {key: moments[f"{name}.{key}"] for key in keys}
        for number, name in enumerate(state.names())
        if f"{name}.step" in moments
    }
    state.optimizer.load_state_dict(saved)


def _under(prefix: str, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in arrays.items() if key.startswith(prefix)}
