"""`make gpu` in small, without a GPU: the smoke run works, and no part stops the next one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    yield gpu
    for name in ("gpu", "measured"):
        sys.modules.pop(name, None)


def test_a_part_that_fails_does_not_stop_the_next(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "HERE", tmp_path / "benchmarks")
    gpu.HERE.mkdir()
    (gpu.HERE / "old.csv").write_text("of an earlier run")
    parts = (
        gpu.Part("first", "the first question", ("-c", "raise SystemExit(3)")),
        gpu.Part("second", "the second question", ("-c", "open('benchmarks/new.csv', 'w')"), "new.csv"),
        gpu.Part("third", "the third question", ("-c", ""), "old.csv"),
    )
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "OUT", gpu.HERE / "gpu.csv")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu, "write", lambda rows, path, _: pd.DataFrame(rows).to_csv(path))
    assert gpu.main() == 1
    rows = pd.read_csv(gpu.OUT)
    assert rows["exit_code"].tolist() == [3, 0, 0] and rows["passed"].tolist() == [False, True, False]
    text = capsys.readouterr().out
    unmeasured = text.partition("still unmeasured:")[2]
    assert "the first question" in unmeasured and "the third question" in unmeasured
    assert "the second question" not in unmeasured and "several GPUs" in unmeasured
    assert str(gpu.HERE / "new.csv") in text


def test_every_part_runs_a_file_of_the_project(gpu: Any) -> None:
    for part in gpu.PARTS:
        script = part.command[0]
        assert script == "-m" or Path(script).is_file()


def test_without_a_gpu_nothing_runs(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="torch sees no CUDA device"):
        gpu.main()


@pytest.mark.long
def test_the_smoke_run_passes_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "smoke.csv"
    command = [sys.executable, ROOT / "benchmarks" / "smoke.py"]
    command += ["--device", "cpu", "--scale", "smoke", "--steps", "6", "--out", out]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = pd.read_csv(out)
    assert rows["check"].tolist() == ["prepare", "train", "resume", "evaluate"] and rows["passed"].all()
    assert out.with_suffix(".json").is_file()
