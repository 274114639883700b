"""Conditions of the machine that a run refuses in one line before it starts."""

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from wimfris.errors import UserError
from wimfris.training.batches import check_shared_memory, shared_bytes
from wimfris.training.distributed import processes

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def settings(smoke_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from wimfris.settings.params import read_params

    monkeypatch.chdir(smoke_folder)
    own = read_params().settings()
    return own.model_copy(update={"train": own.train.model_copy(update={"workers": 4})})


def test_too_little_shared_memory_is_named_with_what_is_needed(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = shared_bytes(settings)
    batch = max(settings.train.batch_size, settings.evaluate.batch_size)
    assert needed == 4 * 3 * batch * 4 * settings.data.image_size**2, "a byte for each of four planes"
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, needed))
    check_shared_memory(settings, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, needed - 1))
    with pytest.raises(UserError, match=r"train\.workers 4 need up to .* MiB; .*--shm-size, or lower train\.workers"):
        check_shared_memory(settings, tmp_path)
    without = settings.model_copy(update={"train": settings.train.model_copy(update={"workers": 0})})
    check_shared_memory(without, tmp_path)
    check_shared_memory(settings, tmp_path / "absent")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2 is set without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start the command",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "without MASTER_ADDR, MASTER_PORT"),
        (dict.fromkeys(VARIABLES, "two"), "is no number of processes"),
    ],
)
def test_incomplete_variables_of_torchrun(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), processes("cpu"):
        pass
