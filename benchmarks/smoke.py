"""A training in small, at a scale's real sizes: train, kill, resume, evaluate. About a minute on a GPU.

    python benchmarks/smoke.py --device cuda                            # 200 steps at scale base -> smoke_cuda.csv
    python benchmarks/smoke.py --device cpu --scale smoke --steps 6     # seconds -> smoke_cpu.csv

The built-in data set is drawn at the scale's image size, and both encoders have random weights of their real sizes:
nothing is downloaded. Every step of the training is a process of its own, as a user starts it:

    train       an uninterrupted run
    resume      the same run, killed (SIGKILL) after its first checkpoint and started again, must leave the same bits
    evaluate    the trained run, evaluated again, must give the records of its training

A row says whether a check passed, and how long it took. A JSON file beside the CSV has the same rows, with the
settings, device, versions and commit. The command fails where a check does.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from measured import write

from wimfris.data.prepare import prepare_index
from wimfris.data.source import make_source
from wimfris.encoders.load import describe_encoders
from wimfris.runs.files import RunFiles
from wimfris.runs.store import CHECKPOINTS, STORE
from wimfris.settings.params import read_params

HERE = Path(__file__).parent
ROOT = HERE.parent
RUN = "full-0"
SCENES = {"val": 24, "testA": 8, "testB": 8}  # images to evaluate on
EPOCH_STEPS = 20  # at most: every step of an epoch wants images of its own
PATIENCE = 1200  # seconds after which a process counts as hung


class Failed(Exception):
    """Raised where a check fails; the message says how."""


def write_params(folder: Path, options: argparse.Namespace) -> None:
    """Write the project's params.yaml into the folder, with random encoders, few images and `--steps` steps."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    scale = content["scales"][options.scale]
    content["scale"], content["data"]["name"] = options.scale, "scenes"
    for name in ("text", "vision"):
        scale["encoders"][name] |= {"source": "random", "revision": None}
    train, epochs = scale["train"], max(options.steps // EPOCH_STEPS, 2)
    epoch_steps = options.steps // epochs
    train |= {
        "device": options.device,
        "epochs": epochs,
        "epoch_steps": epoch_steps,
        "schedule": {"kind": "cosine", "warmup": 1},
        # Each checkpoint is written to disk. At the smallest scale every step writes one, so that a kill finds it.
        "checkpoint_seconds": 1e-9 if options.scale == "smoke" else 2.0,
    }
    if options.device == "cpu":
        train["precision"] = "fp32"
    # An image has one object or more.
    scale["data"]["scenes"] = SCENES | {"train": epoch_steps * train["batch_size"]}
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def prepare() -> str:
    """Draw and index the data, and record the encoders, as the pipeline's stages do."""
    settings = read_params().settings()
    make_source(settings)
    index, _ = prepare_index(settings)
    (settings.folder / "encoders.json").write_text(json.dumps(describe_encoders(settings)), encoding="utf-8")
    return f"{len(index)} objects at {settings.data.image_size} pixels"


def start(*arguments: str) -> "subprocess.Popen[str]":
    """Start `wimfris` in the working directory."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "wimfris", *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> None:
    """Wait for a process. Raises Failed with its last line where it ends with an error."""
    _, errors = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise Failed((errors.strip().splitlines() or ["no message"])[-1])


def hashes(files: RunFiles) -> dict[str, str]:
    """Return the SHA-256 of weights, records and log."""
    paths = (files.weights, files.records, files.log)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def train(files: RunFiles) -> str:
    """Train without an interruption."""
    finish(start("train", "--run", RUN))
    manifest = json.loads(files.manifest.read_text(encoding="utf-8"))
    return f"{manifest['wall_seconds']:.0f} s in the process, scan by {manifest['scan']}"


def resume(files: RunFiles) -> str:
    """Train again, kill the process after its first checkpoint, resume, and compare the bits."""
    expected = hashes(files)
    shutil.rmtree(files.folder)
    shutil.rmtree(STORE)
    process, until = start("train", "--run", RUN), time.monotonic() + PATIENCE
    while not (steps := [int(p.name) for p in CHECKPOINTS.glob("scenes-*/*") if p.is_dir() and p.name.isdigit()]):
        if process.poll() is not None:
            finish(process)
            raise Failed("the run ended before its first checkpoint; raise --steps")
        if time.monotonic() > until:
            process.kill()
            raise Failed("the run hangs before its first checkpoint")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(start("train", "--run", RUN))
    manifest = json.loads(files.manifest.read_text(encoding="utf-8"))
    if manifest["resumed"] != 1:
        raise Failed("the run ended before it was killed; raise --steps")
    different = sorted(name for name, value in hashes(files).items() if value != expected[name])
    if different:
        raise Failed(f"{', '.join(different)} differ from those of the uninterrupted run")
    return f"killed after step {max(steps)}; the same bits"


def evaluate(files: RunFiles) -> str:
    """Evaluate the trained run again, and compare the records."""
    import pandas as pd

    finish(start("evaluate", "--run", RUN, "--out", "again.parquet"))
    ours, again = pd.read_parquet(files.records), pd.read_parquet("again.parquet")
    counts = ["intersection", "union"]
    if len(ours) != len(again):
        raise Failed(f"{len(again)} records, {len(ours)} in training")
    difference = int((ours[counts] - again[counts]).abs().to_numpy().max())
    if difference:
        raise Failed(f"records differ by up to {difference} pixels from those of the training")
    return f"{len(ours)} records, as in training"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--scale", default="base")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    path = (options.out or HERE / f"smoke_{options.device}.csv").absolute()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        write_params(Path(place), options)
        files = RunFiles(read_params().settings().outs / RUN)
        checks: list[tuple[str, Callable[[], str]]] = [
            ("prepare", prepare),
            ("train", lambda: train(files)),
            ("resume", lambda: resume(files)),
            ("evaluate", lambda: evaluate(files)),
        ]
        for name, check in checks:
            started, passed = time.perf_counter(), True
            try:
                result = check()
            except Failed as error:
                passed, result = False, str(error)
            seconds = f"{time.perf_counter() - started:.1f}"
            rows.append({"check": name, "passed": passed, "seconds": seconds, "result": result})
            print(f"{name}: {'passed' if passed else 'FAILED'} in {seconds} s ({result})", flush=True)
            if not passed:  # the next check needs this one's files
                break
    for row in rows:
        row |= {"scale": options.scale, "steps": options.steps}
    write(rows, path, options)
    print(path)
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
