"""The adapter families and the necks, by their names in the settings.

A family is a module with some of these functions; `model` is the settings' section of that name:

    text_adapter(model, text_width) -> nn.Module                    the adapter of one text layer
    vision_adapter(model, vision_width, text_width) -> nn.Module    the adapter of one vision layer
    tune(model, backbone) -> None                                   makes a frozen backbone trainable, in place

A neck is a module with `neck(model, vision_width, text_width) -> nn.Module`. To add a family or a neck, write its
module, add a line here and give its sizes a section under `model.rivals`. A module is imported only for a run that uses
it.
"""

import importlib
from typing import Any

FAMILIES = {
    "wimfris": "wimfris.model.adapters",
    "detris": "wimfris.rivals.detris",
    "etris": "wimfris.rivals.etris",
    "lora": "wimfris.rivals.lora",
    "bottleneck": "wimfris.rivals.bottleneck",
    "pwam": "wimfris.rivals.pwam",
    "finetune": "wimfris.rivals.finetune",
}
NECKS = {
    "hmf": "wimfris.model.hmf",
    "none": "wimfris.model.hmf",
    "detris": "wimfris.rivals.detris",
    "etris": "wimfris.rivals.etris",
}


def load_family(name: str) -> Any:
    """Import the module of an adapter family."""
    return importlib.import_module(FAMILIES[name])


def load_neck(name: str) -> Any:
    """Import the module of a neck."""
    return importlib.import_module(NECKS[name])
