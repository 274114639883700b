"""Defaults of the settings: a fingerprint leaves out a key at its default, so a default can never change its value."""

import typing
from typing import Any

from pydantic import BaseModel

from wimfris.settings.schema import Settings

DEFAULTS = {
    "own_encoders": False,
    "data.scenes.tune": 0,
    "data.splits": ["val", "testA", "testB"],
    "data.mix": [],
    "data.drop_shared": False,
    "data.files": {},
    "data.files.overrides": {},
    "data.files.counts": {},
    "encoders.text.family": "clip",
    "encoders.text.revision": None,
    "encoders.vision.family": "dinov2_with_registers",
    "encoders.vision.revision": None,
    "encoders.vision.positions": "transformers",
    "model.rivals.detris": None,
    "model.rivals.etris": None,
    "model.rivals.lora": None,
    "model.rivals.bottleneck": None,
    "model.rivals.pwam": None,
    "model.hmf.passes": 1,
    "loss.target_resize": "nearest",
    "train.epoch_steps": None,
    "train.backbone_factor": 1.0,
    "train.average": None,
    "train.validation_images": None,
    "train.gradient_checkpointing": False,
    "train.compile": False,
    "evaluate.control_images": None,
}


def defaults(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> default of every key of the settings that has one."""
    known: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if not field.is_required():
            known[prefix + name] = field.get_default(call_default_factory=True)
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                known |= defaults(part, f"{prefix}{name}.")
    return known


def test_no_default_changes() -> None:
    """Runs of the former default would count as current. Give the changed key a new name, or add new keys here."""
    present = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults(Settings).items()}
    assert present == DEFAULTS
