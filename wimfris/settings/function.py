"""Which function the settings of a run declare: two variants with the same function differ by chance alone."""

import json
from typing import Any

from wimfris.settings.schema import Settings

CAUSAL = ("ssm", "ssd")  # mixings in which a token sees the tokens before it, and no other
UNSEEN = {"both": "first", "last": "none"}  # text tokens behind the visual ones, where nothing sees them


def plain(settings: Settings) -> str:
    """Return the settings as JSON that is equal for settings that train the same model.

    A window as large as the grid becomes "grid", the alignment window becomes a number, and without the HMF neck only
    its width and heads remain.
    """
    return json.dumps(_content(settings))


def function(settings: Settings) -> str:
    """Return JSON that is equal for settings with the same function of their inputs and parameters.

    Beyond `plain`: in a causal scan every direction begins at the text, so a text token behind the visual tokens has no
    effect; attention has no order; without a mixing the parts of the scan have no effect; groups of channels have no
    order; a part that the model lacks has no sizes.
    """
    content = _content(settings)
    model, loss = content["model"], content["loss"]
    if settings.model.neck == "hmf":
        hmf = model["hmf"]
        if hmf["mixing"] in CAUSAL:
            hmf["text_token"] = UNSEEN.get(hmf["text_token"], hmf["text_token"])
        elif hmf["mixing"] == "attention":
            hmf["text_token"] = "first" if hmf["text_token"] == "last" else hmf["text_token"]
            hmf |= dict.fromkeys(("state", "conv", "expand"))
        elif hmf["mixing"] == "none":
            hmf |= dict.fromkeys(("window", "text_token", "direction", "passes", "state", "conv", "expand"))
        if isinstance(hmf["window"], list):
            hmf["window"] = sorted(hmf["window"], key=str)
    if not settings.vision_layers:
        model["msa"] = None
    elif model["msa"]["mixer"] == "none":
        model["msa"]["kernels"] = None
    if not settings.text_layers:
        model["mta"] = None
    if not loss["align"]:
        loss |= {"align_window": None, "align_target": None}
    return json.dumps(content)


def _content(settings: Settings) -> dict[str, Any]:
    content = settings.model_copy(update={"variant": ""}).model_dump(mode="json")
    content["loss"]["align_window"] = settings.align_window
    hmf = content["model"]["hmf"]
    if settings.model.neck != "hmf":
        content["model"]["hmf"] = {name: hmf[name] for name in ("width", "heads")}
    elif isinstance(hmf["window"], list):
        hmf["window"] = ["grid" if window == settings.grid else window for window in hmf["window"]]
    elif hmf["window"] == settings.grid:
        hmf["window"] = "grid"
    return content
