"""One model trained by several processes: it is the one that a single process would have trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtrl.errors import InputError
from mtrl.run import processes
from tests.pairs import found_by_two

SCRIPT = Path(__file__).parent / "two_trainers.py"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return found_by_two(SCRIPT, tmp_path_factory.mktemp("two"))


def test_two_processes_train_the_model_of_one(two: list[dict[str, Any]]) -> None:
    """Weights, metrics of all splits, logged losses, weights and conflict, by every method, with missing targets."""
    for found in two:
        assert len(found["error"]) == 10
        assert {case: error for case, error in found["error"].items() if not error < 1e-8} == {}


def test_all_stop_where_one_is_asked_and_go_on_bit_for_bit(two: list[dict[str, Any]]) -> None:
    said = "stopped by SIGTERM in epoch 2; the same command goes on from there"
    assert [found["stopped"] for found in two] == [{"said": said, "difference": 0}] * 2


def test_parts_and_what_is_gathered(two: list[dict[str, Any]]) -> None:
    assert [found["part"] for found in two] == [[0, 1, 2], [3, 4, 4]]
    for found in two:
        assert found["any type"] == [[[True], [False]], [0, 1]]
        assert found["odd batch"] == "batch_size=5, which 2 processes cannot share"


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.own_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(processes, "device_of", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    assert processes.own_device("cuda") == torch.device("cuda")
    for name, value in {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (processes.started(), processes.started_here()) == (3, 3)
    assert processes.own_device("cuda") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"^device=cuda:0: 3 processes on .* with 2 GPUs: use device=cuda$"):
        processes.own_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="give every process a GPU of its own"):
        processes.own_device("cuda")


def test_the_first_with_a_reason_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.first_to_tell()
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert not processes.first_to_tell()  # nobody to ask, and this is not the first process
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [processes.first_to_tell() for _ in range(3)] == [True, False, False]


def test_a_norm_in_evaluation_is_what_it_was() -> None:
    """And has the names of before, so that checkpoints fit either way."""
    from mtrl.supervised.norms import WholeBatchNorm

    layer = nn.BatchNorm2d(3)
    layer(torch.randn(4, 3, 5, 5))
    made = WholeBatchNorm(layer.eval(), None)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(made(x), layer(x))
    assert list(made.state_dict()) == list(layer.state_dict())
