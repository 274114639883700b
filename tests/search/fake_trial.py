"""A worker that computes its score from the settings at once. Files in the working directory control it.

begun: the worker appends its name and process id. seconds: how long it takes. fail, kill, hang, slow: which worker
fails, is killed, never ends or has a step beyond the limit, by the last four characters of its name ("all": every
trial).
"""

import json
import os
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
settings = job["settings"]
name = settings["variant"]
with Path("begun").open("a") as file:
    file.write(f"{name} {os.getpid()}\n")


def control(name: str) -> str:
    """Return the content of a control file; empty if it is missing."""
    return Path(name).read_text() if Path(name).exists() else ""


def write_progress() -> None:
    (folder / "partial").write_text(json.dumps(progress))
    (folder / "partial").rename(folder / "progress.json")


window, rate = settings["model"]["hmf"]["window"], settings["train"]["learning_rate"]
score = {1: 0.3, 2: 0.4, 4: 0.5, 8: 0.45, "grid": 0.2}[window] - abs(rate - 0.003)
progress = {"epochs": {"1": (1 - score) / 2}}  # good settings start behind, so that some are pruned
write_progress()
time.sleep(float(control("seconds") or 0))
if control("hang") == name[-4:]:
    time.sleep(600)
if control("kill") == name[-4:]:
    os.kill(os.getpid(), 9)
if control("fail") == name[-4:] or (control("fail") == "all" and name != "reference"):
    print("wimfris: the loss is nan at step 3; lower train.learning_rate", file=sys.stderr)
    sys.exit(2)
if job["limits"]:
    progress["time_ratio"] = 1.5 if control("slow") == name[-4:] else 1.0
    write_progress()
    if progress["time_ratio"] > job["limits"]["time"]:
        sys.exit(3)
progress["epochs"]["2"] = score
if job["latency"]:
    progress["latency_ms"] = 10.0
write_progress()
metrics = dict.fromkeys(("miou", "oiou", "pr50", "pr60", "pr70", "pr80", "pr90"), score) | {"n": 10}
splits = {split: {"sentence": metrics, "shuffled": metrics, "empty": metrics} for split in ("val", "testA", "testB")}
run = Path("runs/scenes-smoke") / settings["group"] / f"{name}-{job['seed']}"
run.mkdir(parents=True, exist_ok=True)
for kind, content in (("metrics", splits), ("manifest", {"wall_seconds": 1.0, "device": "fake"})):
    (run / f"{kind}.json").write_text(json.dumps(content))
