"""One `dvc repro` as a process of its own, beside another that holds what it needs."""

from pathlib import Path

import pytest

from wimfris.matrix import repro
from wimfris.matrix.processes import Stop, environment
from wimfris.matrix.repro import Work, reproduce

BUSY_DVC = """
import sys
from pathlib import Path
left = int(Path("busy").read_text())
Path("busy").write_text(str(left - 1))
if left > 0:
    sys.exit("ERROR: failed to reproduce 'x': 'out' is busy, it is being blocked by:\\n  (PID 999999999): dvc")
print(" ".join(sys.argv[1:]))
"""


@pytest.mark.parametrize(("busy", "ends_well"), [(1, True), (9, False)])
def test_what_another_process_holds_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: int, ends_well: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(repro, "ATTEMPTS", 3)
    (tmp_path / "fake" / "dvc").mkdir(parents=True)
    (tmp_path / "fake" / "dvc" / "__main__.py").write_text(BUSY_DVC)
    (tmp_path / "fake" / "dvc" / "__init__.py").touch()
    (tmp_path / "busy").write_text(str(busy))
    work = Work("full-0", tmp_path / "logs" / "full-0.log")
    failed = reproduce(work, ["-s", "train@full-0"], environment() | {"PYTHONPATH": str(tmp_path / "fake")}, Stop())
    assert (failed is None) == ends_well
    assert int((tmp_path / "busy").read_text()) == busy - (2 if ends_well else 3)
    if ends_well:
        assert work.text() == "--wait-for-lock repro -s train@full-0\n"
    else:
        assert "is busy" in work.text() and "PID 999999999" in str(failed)
