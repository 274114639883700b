"""A hub cache of a test's own."""

import shutil
from pathlib import Path

import pytest


def copy_hub(hub: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the cache `hub` into `folder`, make transformers read the copy, and fail the test that uses the network."""
    copy = Path(shutil.copytree(hub, folder / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(copy))
    monkeypatch.setattr("socket.socket.connect", lambda *rest: pytest.fail("the network was used"))
    return copy
