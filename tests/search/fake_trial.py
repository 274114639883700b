"""A trainer of trials that computes its score from the settings; what it does besides is in files of its folder."""

import json
import os
import sys
import time
from pathlib import Path

import optuna

from wimfris.search.storage import open_storage

job = json.loads(Path(sys.argv[1]).read_text())
settings, run = job["settings"], f"{job['settings']['variant']}-{job['seed']}"
with Path("begun").open("a") as file:
    file.write(f"{run} {os.getpid()}\n")


def told(name: str) -> str:
    """The content of a file, empty where there is none."""
    return Path(name).read_text() if Path(name).exists() else ""


time.sleep(float(told("seconds") or 0))
window, rate = settings["model"]["hmf"]["window"], settings["train"]["learning_rate"]
reference = job["trial"] is None
if not reference and told("fail") in (run.rpartition("-")[0][-4:], "all"):
    print("wimfris: the loss is nan at step 3; lower train.learning_rate", file=sys.stderr)
    sys.exit(2)
if not reference and told("kill") == run.rpartition("-")[0][-4:]:
    os.kill(os.getpid(), 9)
score = {1: 0.3, 2: 0.4, 4: 0.5, 8: 0.45, "grid": 0.2}[window] - abs(rate - 0.003)
if not reference:
    storage = open_storage(os.environ["WIMFRIS_SEARCH_STORAGE"])
    study = optuna.load_study(study_name=job["study"], storage=storage)
    for epoch in (1, 2):
        storage.set_trial_intermediate_value(job["trial"], epoch, score * epoch / 2)
    if told("prune") == run.rpartition("-")[0][-4:]:
        sys.exit(64)
    if job["latency"]:
        storage.set_trial_user_attr(job["trial"], "latency_ms", 10.0)
folder = Path("runs/scenes-smoke") / job["group"]
metrics = dict.fromkeys(("miou", "oiou", "pr50", "pr60", "pr70", "pr80", "pr90"), score) | {"n": 10}
splits = {split: {"sentence": metrics, "shuffled": metrics, "empty": metrics} for split in ("val", "testA", "testB")}
for kind, content in (("metrics", splits), ("manifests", {"wall_seconds": 1.0, "device": "fake"})):
    path = folder / kind / f"{run}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
