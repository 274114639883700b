"""The whole pipeline under DVC, in a clean clone at scale smoke: what a newcomer gets from `dvc repro`.

`make test-slow` runs this file.
"""

import copy
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from wimfris.data.refer import read_refer, scenes_source
from wimfris.metrics import summarise
from wimfris.runs.records import read_records

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("original_tests", ROOT / "tests" / "encoders" / "test_original.py")
assert _spec and _spec.loader
_original = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_original)
clip, dino = _original.clip, _original.dino  # fixtures: small encoders
RUNS = Path("runs/scenes-smoke")
GATHERED = "reports/records/scenes-smoke"  # the evidence
SEEDS, SPLITS = (0, 1), ("val", "testA", "testB")
# long enough to be interrupted in the middle, at a rate at which predictions are not empty
TRAIN = {"epochs": 12, "learning_rate": 0.02, "checkpoint_seconds": 1e-9}


def environment(folder: Path) -> dict[str, str]:
    """The interpreter's own commands first, the clone's package instead of the installed one."""
    values = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), values.get("PATH", "")])
    return values | {"PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


def done(folder: Path, *command: str) -> str:
    result = call(folder, *command)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    return done(folder, "git", *identity, *arguments)


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / "params.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def rerun(folder: Path) -> set[str]:
    """The stages that `dvc repro` would run now, as far as it can say before it runs any."""
    return set(re.findall(r"Running stage '([^']+)'", done(folder, "dvc", "repro", "--dry")))


@pytest.fixture(scope="module")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the repository with the working tree's changes, at scale smoke; everything committed, nothing run."""
    if shutil.which("git") is None or call(ROOT, "git", "rev-parse", "--verify", "HEAD").returncode:
        pytest.skip("needs git, and the project in a git repository with a commit")
    folder = tmp_path_factory.mktemp("end-to-end") / "wimfris"
    done(ROOT, "git", "clone", "--quiet", str(ROOT), str(folder))
    for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if not name:
            continue
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)

    def smoke(params: Any) -> None:
        params["scale"], params["seeds"] = "smoke", list(SEEDS)
        params |= {"variants": {"full": {}}, "extended": {}, "controls": {}, "extra_seeds": {}, "explorer": []}
        params["scales"]["smoke"]["train"] |= TRAIN

    edit(folder, smoke)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "smoke")
    where = done(folder, sys.executable, "-c", "import wimfris; print(wimfris.__file__)")
    assert Path(where.strip()).is_relative_to(folder)
    return folder


@pytest.fixture(scope="module")
def reproduced(cloned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clone after `dvc repro`; only to be read."""
    folder = tmp_path_factory.mktemp("reproduced") / "wimfris"
    shutil.copytree(cloned, folder, symlinks=True)
    done(folder, "dvc", "repro")
    return folder


@pytest.fixture
def again(reproduced: Path, tmp_path: Path) -> Path:
    """A copy of the reproduced clone, of the test's own."""
    folder = tmp_path / "wimfris"
    shutil.copytree(reproduced, folder, symlinks=True)
    return folder


def test_table_has_a_row_per_system_and_split(reproduced: Path) -> None:
    table = pd.read_csv(reproduced / "reports" / "tables" / "scenes-smoke" / "main.csv")
    required = ["system", "split", "n", "miou", "oiou", "pr50", "pr60", "pr70", "pr80", "pr90"]
    assert set(required) | {"miou_shuffled", "miou_empty"} <= set(table.columns)
    smoke = table[table["scale"] == "smoke"]
    assert list(zip(smoke["system"], smoke["split"], strict=True)) == [("full", split) for split in SPLITS]
    assert (smoke["seeds"] == len(SEEDS)).all()
    records = pd.concat(read_records(reproduced / RUNS / "core" / f"full-{seed}" / "records.parquet") for seed in SEEDS)
    for row in smoke.to_dict("records"):
        real = records[(records["split"] == row["split"]) & (records["condition"] == "sentence")]
        runs = [summarise(part["intersection"], part["union"]) for _, part in real.groupby("seed")]
        assert row["n"] == runs[0]["n"]
        for name in ("miou", "oiou", "pr50"):
            assert row[name] == pytest.approx(np.mean([run[name] for run in runs]), abs=1e-6)
    assert smoke["miou"].max() > 0
    markdown = (reproduced / "reports" / "tables" / "scenes-smoke" / "main.md").read_text()
    assert all(split in markdown for split in SPLITS)
    assert "\\toprule" in (reproduced / "reports" / "tables" / "scenes-smoke" / "main.tex").read_text()


def test_figures_show_something(reproduced: Path) -> None:
    folder = reproduced / "reports" / "figures" / "scenes-smoke"
    for name in ("gallery", "curves", "learned-emphasis"):
        picture = cv2.imread(str(folder / f"{name}.png"))
        assert picture is not None and min(picture.shape[:2]) > 200
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20, f"{name}: an empty picture"


def test_report_names_the_results(reproduced: Path) -> None:
    output = done(reproduced, "wimfris", "report")
    assert all(split in output for split in SPLITS)
    assert "smoke" in output


def test_what_is_committed_and_what_is_cached(reproduced: Path) -> None:
    """Small results are there to be committed, large ones are DVC's; nothing else appears in the clone."""
    changed = set(git(reproduced, "status", "--porcelain", "--untracked-files=all").split("\n"))
    files = {line[3:] for line in changed if line}
    assert {
        "dvc.lock",
        "reports/tables/scenes-smoke/main.csv",
        f"{GATHERED}-runs.csv",
        f"{GATHERED}-metrics/full-0.json",
    } <= files
    assert {f"{GATHERED}.parquet", f"{GATHERED}-emphasis.csv", "reports/index.html", "reports/claims.md"} <= files
    files -= {f"{GATHERED}.parquet", "reports/masks/scenes-smoke.parquet"}
    foreign = re.compile(r"\.(parquet|safetensors|jsonl|p|jpg|tsv|partial)$|checkpoint|\.dvc/")
    assert not [name for name in files if foreign.search(name)]


def test_manifest_says_where_the_run_comes_from(reproduced: Path) -> None:
    manifest = json.loads((reproduced / RUNS / "core" / "full-1" / "manifest.json").read_text())
    assert manifest["run"] == "full-1" and manifest["seed"] == 1
    assert manifest["code"]["commit"] == git(reproduced, "rev-parse", "HEAD").strip()
    assert manifest["code"]["dirty"] is False
    assert manifest["settings"]["train"]["epochs"] == TRAIN["epochs"]
    encoders = json.loads((reproduced / RUNS / "encoders.json").read_text())
    assert manifest["encoders"] == encoders
    assert manifest["threads"] == 1 and manifest["peak_memory_bytes"]["host"] > 1e7


def test_second_repro_is_up_to_date(reproduced: Path) -> None:
    assert "up to date" in done(reproduced, "dvc", "repro")


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            ["dvc", "repro", "train@full-0"],
            cwd=folder,
            env=environment(folder),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 600
    while True:
        saved = [path.name for path in (folder / ".checkpoints").glob("*/*") if path.name.isdigit()]
        if any(int(name) >= step for name in saved):
            return
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.01)


def test_killed_repro_ends_with_the_same_bits(again: Path, reproduced: Path, tmp_path: Path) -> None:
    """kill -9 of all of it in mid-epoch; then of dvc alone, which leaves its trainer running; then to the end."""
    shutil.rmtree(again / ".dvc" / "cache")  # or DVC would restore the results that it remembers
    shutil.rmtree(again / ".checkpoints")  # and the store its finished training
    run = again / RUNS / "core" / "full-0"
    names = [str(path.relative_to(again)) for path in run.iterdir()]
    shutil.rmtree(run)
    log = tmp_path / "log"

    process = start(again, log)
    wait_for_step(again, 12, process, log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    process = start(again, log)
    wait_for_step(again, 33, process, log)
    process.kill()
    process.wait()
    assert not (again / RUNS / "core" / "full-0").exists()

    done(again, "dvc", "repro", "train@full-0")
    for name in names:
        if "manifest" not in name:
            assert (again / name).read_bytes() == (reproduced / name).read_bytes(), name
    assert "resumed at step" in log.read_text()
    # the manifest holds other times, so that the evidence is collected again, but the run is not trained again
    assert "Running stage 'train@full-0'" not in done(again, "dvc", "repro")


def test_predict_writes_mask_and_overlay(reproduced: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    picture = np.random.default_rng(0).integers(0, 255, (90, 140, 3), dtype=np.uint8)
    cv2.imwrite(str(photo), picture)
    sentence = ("--text", "the small red circle")
    command = ("wimfris", "predict", "--run", "full-0", "--image", str(photo), *sentence)
    output = done(reproduced, *command, "--out", str(tmp_path / "out"))
    assert "% of the picture" in output
    mask = cv2.imread(str(tmp_path / "out" / "photo-mask.png"), cv2.IMREAD_UNCHANGED)
    overlay = cv2.imread(str(tmp_path / "out" / "photo-overlay.png"))
    assert mask is not None and mask.shape == (90, 140) and set(np.unique(mask)) <= {0, 255}
    assert overlay is not None and overlay.shape == (90, 140, 3)


def test_metrics_and_plots_are_dvc_s_too(reproduced: Path) -> None:
    metrics = json.loads(done(reproduced, "dvc", "metrics", "show", "--json"))[""]["data"]
    scores = metrics[f"{GATHERED}-metrics/full-1.json"]["data"]
    assert set(scores) == {"miou", "oiou", "pr50", "pr60", "pr70", "pr80", "pr90"}
    assert 0 < scores["miou"] < 1
    page = done(reproduced, "dvc", "plots", "show", "--out", ".checkpoints/plots").strip().splitlines()[-1]
    curves = Path(page.removeprefix("file://")).read_text()
    assert "val_miou" in curves and "full-0" in curves


def test_the_paper_s_command_on_official_files(reproduced: Path, tmp_path: Path, clip: Any, dino: Any) -> None:
    """`dvc exp run -S scale=base -S data.name=refcoco`, in a clone whose `base` is small: our pictures under RefCOCO's
    names, with the counts to match, and encoders in the authors' formats.
    """
    folder = tmp_path / "wimfris"
    done(reproduced, "git", "clone", "--quiet", str(reproduced), str(folder))
    drawn, data = reproduced / RUNS / "refer", folder / "data"
    files = scenes_source(drawn)
    shutil.copytree(files.images, data / "images" / "train2014")
    (data / "refcoco").mkdir()
    shutil.copy(files.refs, data / "refcoco" / "refs(unc).p")
    shutil.copy(files.instances, data / "refcoco" / "instances.json")
    objects = Counter(one.split for one in read_refer(files))
    (data / "weights").mkdir()
    _original.write_files(data / "weights", clip, dino)

    def small(params: Any) -> None:
        base = params["scales"]["base"] = copy.deepcopy(params["scales"]["smoke"])
        params["datasets"]["refcoco"]["counts"] = {split: [number, 0, 0] for split, number in objects.items()}
        base["encoders"]["text"]["source"] = "data/weights/ViT.pt"
        base["encoders"]["vision"]["source"] = "data/weights/dino.pth"
        base["train"]["epochs"] = 2
        params["variants"] = yaml.safe_load((ROOT / "params.yaml").read_text())["variants"]
        params["explorer"] = ["full", "none"]

    edit(folder, small)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "an excerpt")
    done(folder, "dvc", "exp", "run", "-S", "scale=base", "-S", "data.name=refcoco")
    records = read_records(folder / "runs" / "refcoco-base" / "core" / "full-0" / "records.parquet")
    assert set(records["split"]) == set(SPLITS) and set(records["dataset"]) == {"refcoco"}
    table = pd.read_csv(folder / "reports" / "tables" / "refcoco-base" / "main.csv")
    assert set(table["scale"]) == {"base"} and set(table["dataset"]) == {"refcoco"}
    assert "refcoco" in (folder / "reports" / "index.html").read_text()
    explorer = (folder / "runs" / "refcoco-base" / "explorer.html").read_text()
    assert "refcoco, scale base" in explorer and "data:image/webp;base64," in explorer
    shipped = (folder / "reports" / "explorer.html").read_text()
    assert "runs/refcoco-base/explorer.html" in shipped and "base64" not in shipped
    assert "up to date" in done(folder, "dvc", "repro"), "the experiment's params stay in the folder"


def test_wrong_parameter_stops_the_first_stage_in_one_line(cloned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wimfris"
    shutil.copytree(cloned, folder, symlinks=True)
    edit(folder, lambda params: params["scales"]["smoke"]["model"]["hmf"].update(window=99))
    result = call(folder, "dvc", "repro")
    assert result.returncode != 0
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("wimfris: ")]
    assert len(lines) == 1 and re.search(r"model\.hmf\.window must be at most the grid size \(8\), got 99", lines[0])
    assert "Traceback" not in result.stdout + result.stderr
    assert not (folder / RUNS / "index").exists()
