"""The facts about a trained model, and its model card."""

import json
from typing import Any

from huggingface_hub import ModelCardData

from wimfris.data.index import read_index
from wimfris.runs.files import RunFiles
from wimfris.runs.log import read_log
from wimfris.runs.manifest import read_manifest
from wimfris.settings.run import Run
from wimfris.settings.schema import Settings

METRICS = {"miou": "mIoU", "oiou": "oIoU", "pr50": "Pr@0.5", "pr60": "Pr@0.6", "pr70": "Pr@0.7"}
METRICS |= {"pr80": "Pr@0.8", "pr90": "Pr@0.9"}


def run_facts(settings: Settings, run: Run) -> dict[str, Any]:
    """Return what a run's files say of its training and its scores. Raises UserError where they are missing."""
    files = RunFiles(settings.outs / str(run))
    manifest, metrics = read_manifest(files.manifest), json.loads(files.metrics.read_text(encoding="utf-8"))
    index = settings.folder / "index" / "index.parquet"
    objects = int((read_index(index)["split"] == "train").sum()) if index.is_file() else None
    return {
        "run": str(run),
        "seed": run.seed,
        "commit": manifest["code"]["commit"],
        "uncommitted_changes": manifest["code"]["dirty"],
        "fingerprint": manifest["fingerprint"],
        "device": manifest["device"],
        "packages": manifest["packages"],
        "trained_parameters": manifest["trained_parameters"],
        "best_epoch": manifest["best_epoch"],
        "steps": sum(event["event"] == "epoch" for event in read_log(files.log)) * settings.train.steps(objects or 0)
        or None,
        "train_objects": objects,
        "encoders": manifest["encoders"],
        "scores": {split: conditions["sentence"] for split, conditions in metrics.items()},
    }


def card_text(facts: dict[str, Any], settings: Settings) -> str:
    """Return a model card in Markdown with the hub's metadata."""
    metadata = ModelCardData(
        library_name="wimfris",
        license="apache-2.0",
        pipeline_tag="image-segmentation",
        language="en",
        tags=["referring-image-segmentation", "wimfris"],
    )
    name = facts.get("run", settings.variant)
    built_in = settings.data.name == "scenes"
    lines = ["---", metadata.to_yaml(), "---", "", f"# WIMFRIS: {name}", ""]
    lines += [
        "A model for referring image segmentation: an image and a sentence in, the mask of the object that the",
        f"sentence names out. It is run `{name}` at scale `{settings.scale}` of the harness",
        "`wimfris`, a reimplementation of WIMFRIS (Moon et al., ICLR 2026).",
        "",
        "```python",
        "from wimfris.inference import Predictor",
        "",
        'predictor = Predictor.from_pretrained("<this folder>")',
        'mask = predictor("photo.jpg", "the red circle")  # (H, W) bool',
        "```",
        "",
        "## Training",
        "",
        f"- Data: {_data(facts, settings)}",
        f"- Seed {facts.get('seed')}, best epoch {facts.get('best_epoch')} by mIoU on val",
        f"- Code: commit {facts.get('commit')}{' with uncommitted changes' * bool(facts.get('uncommitted_changes'))}, "
        f"fingerprint {facts.get('fingerprint')}",
        f"- Machine: {facts.get('device')}, torch {facts.get('packages', {}).get('torch')}",
        f"- Trained parameters: {facts.get('trained_parameters', 0):,}. Frozen encoders: {_encoders(facts, settings)}",
        "",
        "## Scores",
        "",
        f"Percent, protocol `{settings.evaluate.protocol}`, every sentence of the split, one seed.",
        "",
        "| split | sentences | " + " | ".join(METRICS.values()) + " |",
        "|:--|--:|" + "--:|" * len(METRICS),
    ]
    for split, scores in facts.get("scores", {}).items():
        cells = " | ".join(f"{100 * scores[name]:.1f}" for name in METRICS)
        lines.append(f"| {split} | {scores['n']:.0f} | {cells} |")
    lines += ["", "## Limits", ""]
    if built_in:
        lines += [
            "It was trained on drawn scenes of 64 pixels with six shapes and six colours, and reads only the words of",
            "their sentences. It shows that the code works. It says nothing about photographs or the paper's results.",
        ]
    else:
        lines += ["It knows what its training data hold: objects of COCO's categories and short English sentences."]
    lines += ["", "## Licence", "", "Apache-2.0."]
    return "\n".join(lines)


def _data(facts: dict[str, Any], settings: Settings) -> str:
    name = "the built-in drawn scenes" if settings.data.name == "scenes" else settings.data.name
    objects = facts.get("train_objects")
    return f"{name}, split train" + (f", {objects:,} referred objects" if objects else "")


def _encoders(facts: dict[str, Any], settings: Settings) -> str:
    sources = {settings.encoders.text.source, settings.encoders.vision.source}
    where = "in this folder" if facts.get("encoders_included") else "not in this folder"
    return f"{', '.join(sorted(sources))} ({where})"
