"""Files of fairchem-core that are not what they should be, of which nothing is run."""

from typing import Any

import pytest
import torch
from fairchem_checkpoints import CONSERVING, CORE, checkpoint, put, record

from zoo.errors import IntegrityError, MissingPackageError
from zoo.teachers import fairchem

needs_fairchem = pytest.mark.fairchem
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch.jit, and of ray's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def _refused(match: str) -> None:
    with pytest.raises(IntegrityError, match=match) as error:
        fairchem.load(CONSERVING, torch.float32, "cpu")
    assert "\n" not in str(error.value)


@needs_fairchem
def test_weights_that_are_not_here_are_named_with_their_command() -> None:
    with pytest.raises(MissingPackageError, match="run: zoo teachers fetch esen-sm-conserving-all-omol/teacher"):
        fairchem.load(CONSERVING, torch.float32, "cpu")


@needs_fairchem
def test_another_file_than_was_fetched_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(CONSERVING, checkpoint(CONSERVING))
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(torch, "load", lambda *given, **asked: pytest.fail("it was opened"))
    _refused("not opened")


@needs_fairchem
def test_a_truncated_file_is_refused() -> None:
    path = put(CONSERVING, checkpoint(CONSERVING))
    path.write_bytes(path.read_bytes()[:-100])
    record(CONSERVING, path)
    _refused("is cut short; fetch it again: zoo teachers fetch")


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('something was run')",)


@needs_fairchem
def test_what_a_pickle_would_run_is_refused() -> None:
    content = checkpoint(CONSERVING)
    content.tasks_config = [Hostile()]
    put(CONSERVING, content)
    _refused("wants to call .*exec.*, which zoo does not know to be harmless")
    names = [getattr(one, "__name__", "") for one in torch.serialization.get_safe_globals()]
    assert "MLIPInferenceCheckpoint" not in names, "the list of classes is open for one file alone"


@needs_fairchem
def test_what_other_packages_let_through_is_refused_all_the_same() -> None:
    content = checkpoint(CONSERVING)
    content.model_config["extra"] = Hostile
    put(CONSERVING, content)
    with torch.serialization.safe_globals([Hostile]):
        _refused("wants to call .*Hostile")


@needs_fairchem
def test_another_thing_than_a_checkpoint_is_refused() -> None:
    put(CONSERVING, {"state_dict": {}})
    _refused("read as a checkpoint of fairchem-core .TypeError: a dict is no inference checkpoint.; fetch it again")
    content = checkpoint(CONSERVING)
    content.tasks_config = ["omol"]
    put(CONSERVING, content)
    _refused("its tasks are not described")


@needs_fairchem
@pytest.mark.parametrize(
    "harm",
    [
        {"_target_": "os.system"},
        {"_target_": ["os.system"]},
        {"model_id": "${oc.env:HOME}"},
        {"backbone": {"cutoff": "${oc.decode:4.5}"}},
        {"finetune_config": {"starting_checkpoint": "elsewhere.pt"}},
        {"backbone": {"model": "fairchem.core.common.utils.load_model_and_weights_from_checkpoint"}},
        {"heads": {"efs": {"module": "builtins.exec"}}},
        {"heads": {"efs": {"head_cls": "subprocess.run"}}},
        {"backbone": {"act": {"_target_": "builtins.eval", "_args_": ["1"]}}},
    ],
)
def test_what_a_description_would_run_is_refused(harm: dict[str, Any]) -> None:
    content = checkpoint(CONSERVING)
    _merge(content.model_config, harm)
    put(CONSERVING, content)
    _refused("wants to call .*, which no model of fairchem-core does")


@needs_fairchem
def test_what_omegaconf_would_look_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = checkpoint(CONSERVING, wrap=True)
    content.model_config["model_id"] = "${oc.env:ZOO_SECRET}"
    monkeypatch.setenv("ZOO_SECRET", "UMA-S-1.2.1")
    put(CONSERVING, content)
    _refused("wants to call .*oc.env:ZOO_SECRET")


@needs_fairchem
def test_what_a_task_would_run_is_refused() -> None:
    content = checkpoint(CONSERVING)
    content.tasks_config[0]["normalizer"] = {
        "_target_": f"{CORE}.modules.normalization.normalizer.create_normalizer",
        "file": "elsewhere.pt",
    }
    put(CONSERVING, content)
    _refused("wants to call .*create_normalizer")


def _merge(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict) and key in whole:
            _merge(whole[key], value)
        else:
            whole[key] = value
