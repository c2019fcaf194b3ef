"""A checkpoint: all that goes on is in it, and a broken or foreign one is named."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from zoo.distill.checkpoint import Apprentice, Plateau, TrainingState, load_checkpoint, save_checkpoint
from zoo.errors import ConfigError, IntegrityError
from zoo.students import PaiNNConfig, PaiNNDTConfig, build_student

CONFIGS = {
    "conservative": PaiNNConfig(elements=("Si",), channels=4, layers=1, radials=3, cutoff=4.0),
    "direct": PaiNNDTConfig(elements=("Si",), channels=4, layers=1, radials=3, cutoff=4.0),  # some are not trained
    "embedding": PaiNNConfig(elements=("Si",), channels=4, layers=1, radials=3, cutoff=4.0, teacher_channels=3),
}


def state_of(config, *, projected=True, seed=0, amsgrad=False) -> TrainingState:
    student = build_student(config, torch.Generator().manual_seed(seed))
    if config.teacher_channels:
        student.set_teacher_embedding(torch.arange(3.0)[None] + seed)
    apprentice = Apprentice(student, nn.Linear(4, 5) if projected else None)
    average = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    optimizer = torch.optim.AdamW(apprentice.parameters(), lr=0.1, weight_decay=0.1, amsgrad=amsgrad)
    return TrainingState(apprentice, average, optimizer)


def step(state, number):
    """One step down a made-up gradient, and what else a step changes."""
    random = torch.Generator().manual_seed(number)
    for parameter in state.apprentice.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=random) / (number + 1)
    state.optimizer.step()
    for name, parameter in state.student.named_parameters():
        state.average[name].lerp_(parameter.detach(), 0.1)
    state.step += 1


def everything(state) -> dict[str, torch.Tensor]:
    tensors = {f"weight {name}": tensor for name, tensor in state.apprentice.state_dict().items()}
    tensors |= {f"average {name}": tensor for name, tensor in state.average.items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"moment {number} {key}": tensor for key, tensor in moments.items()}
    return tensors


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_training_goes_on_as_if_it_had_not_stopped(name, projected, amsgrad, tmp_path):
    state = state_of(CONFIGS[name], projected=projected, amsgrad=amsgrad)
    for number in range(3):
        step(state, number)
    state.switched, state.best = True, (0.25, 2)
    save_checkpoint(tmp_path / "last.safetensors", state, "inputs")
    other = state_of(CONFIGS[name], projected=projected, seed=1, amsgrad=amsgrad)
    load_checkpoint(tmp_path / "last.safetensors", other, "inputs")
    assert (other.step, other.switched, other.best) == (3, True, (0.25, 2))
    for number in (3, 4):
        step(state, number)
        step(other, number)
    ours, theirs = everything(state), everything(other)
    assert ours.keys() == theirs.keys()
    assert any("max_exp_avg_sq" in key for key in ours) == amsgrad
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


def test_before_the_first_step_and_the_first_validation(tmp_path):
    state = state_of(CONFIGS["conservative"])
    save_checkpoint(tmp_path / "last.safetensors", state, "inputs")
    other = state_of(CONFIGS["conservative"], seed=1)
    load_checkpoint(tmp_path / "last.safetensors", other, "inputs")
    assert (other.step, other.switched, other.best) == (0, False, None)
    assert not other.optimizer.state_dict()["state"]
    assert torch.equal(other.student.embedding.weight, state.student.embedding.weight)


def test_the_same_state_is_the_same_file(tmp_path):
    for folder in ("one", "two"):
        state = state_of(CONFIGS["conservative"], projected=False)
        step(state, 0)
        save_checkpoint(tmp_path / folder / "last.safetensors", state, "inputs")
    assert (tmp_path / "one/last.safetensors").read_bytes() == (tmp_path / "two/last.safetensors").read_bytes()
    with safe_open(tmp_path / "one/last.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["state"])
    assert facts == {"format": 2, "inputs": "inputs", "step": 1, "switched": False, "best": None}


@pytest.mark.parametrize("plateau", [Plateau(), Plateau(0.1 + 0.2, 3, 2)])
def test_the_plateau_of_the_errors_is_kept(plateau, tmp_path):
    state, other = state_of(CONFIGS["conservative"]), state_of(CONFIGS["conservative"])
    state.plateau, other.plateau = plateau, Plateau(9.0, 9, 9)
    save_checkpoint(tmp_path / "last.safetensors", state, "inputs")
    load_checkpoint(tmp_path / "last.safetensors", other, "inputs")
    assert other.plateau == plateau


def test_one_of_other_inputs_is_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, state_of(CONFIGS["conservative"]), "inputs")
    with pytest.raises(ConfigError, match=r"belongs to other settings; choose another --run, or pass --replace"):
        load_checkpoint(path, state_of(CONFIGS["conservative"]), "others")


DAMAGES = {
    "short": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "no-facts": lambda path: save_file(load_file(path), path),
    "broken-facts": lambda path: save_file(load_file(path), path, metadata={"state": "{"}),
    "no-step": lambda path: save_file(load_file(path), path, metadata={"state": '{"inputs": "inputs"}'}),
    "tensor-missing": lambda path: save_file(
        {key: value for key, value in load_file(path).items() if "readout" not in key},
        path,
        metadata={"state": '{"inputs": "inputs", "step": 1, "switched": false, "best": null}'},
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_one_is_named(damage, tmp_path):
    path = tmp_path / "checkpoint" / "last.safetensors"
    save_checkpoint(path, state_of(CONFIGS["conservative"]), "inputs")
    DAMAGES[damage](path)
    with pytest.raises(IntegrityError, match=rf"cannot be read .*delete the folder {tmp_path} and run the same again"):
        load_checkpoint(path, state_of(CONFIGS["conservative"]), "inputs")


WITHOUT = {"plateau": {"plateau": Plateau()}, "moment": {"amsgrad": True}}


@pytest.mark.parametrize("missing", WITHOUT)
def test_one_without_what_its_schedule_needs_is_named(missing, tmp_path):
    path = tmp_path / "checkpoint" / "last.safetensors"
    wanted = dict(WITHOUT[missing])
    plateau = wanted.pop("plateau", None)
    state, other = state_of(CONFIGS["conservative"]), state_of(CONFIGS["conservative"], **wanted)
    step(state, 0)
    other.plateau = plateau
    save_checkpoint(path, state, "inputs")
    with pytest.raises(IntegrityError, match=r"cannot be read \('.*(plateau|max_exp_avg_sq)'\); delete the folder"):
        load_checkpoint(path, other, "inputs")
