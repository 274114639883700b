"""Released DETRIS checkpoints under our evaluation, to compare our protocol with DETRIS's own table."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wimfris.data.tokens import Tokenizer
from wimfris.errors import UserError
from wimfris.model.segmenter import Segmenter
from wimfris.rivals.detris_weights import load_detris
from wimfris.settings.params import Params
from wimfris.settings.schema import Settings
from wimfris.training.build import build_segmenter

VARIANT = "detris_released"
_ATTENTION = re.compile(r"(?:module\.)?dinov2\.blocks\.\d+\.adapter\.cross\.image_proj\.weight")
_DOWN = re.compile(r"(?:module\.)?(dinov2\.blocks|txt_backbone\.transformer\.resblocks)\.(\d+)\.adapter\.D_fc1\.weight")


def detris_settings(params: Params, state: Mapping[str, Tensor]) -> Settings:
    """Return the settings in use with DETRIS's adapters and neck, in the layers and widths of a checkpoint.

    Raises UserError if an encoder has no adapters, or adapters of several widths.
    """
    layers: dict[str, list[int]] = {"dinov2": [], "txt_backbone": []}
    widths: dict[str, set[int]] = {"dinov2": set(), "txt_backbone": set()}
    for name, value in state.items():
        if match := _DOWN.fullmatch(name):
            tower = match[1].split(".")[0]
            layers[tower].append(int(match[2]))
            widths[tower].add(int(value.shape[0]))
    if any(len(values) != 1 for values in widths.values()):
        actual = ", ".join(f"{tower} {sorted(values) or 'none'}" for tower, values in widths.items())
        raise UserError(f"DETRIS checkpoint: both encoders must have adapters of one width, got {actual}")
    attention = next((len(value) for name, value in state.items() if _ATTENTION.fullmatch(name)), None)
    if attention is None:
        raise UserError("DETRIS checkpoint: its vision adapters lack cross.image_proj; name a released checkpoint")
    sizes = {"attention_width": attention, "width": widths["dinov2"].pop(), "text_width": widths["txt_backbone"].pop()}
    overrides: dict[str, Any] = {
        "adapters": "detris",
        "neck": "detris",
        "mta": {"layers": sorted(layers["txt_backbone"])},
        "msa": {"layers": sorted(layers["dinov2"])},
        "rivals": {"detris": sizes},
    }
    everywhere = params.everywhere | {VARIANT: {"model": overrides}}
    return params.model_copy(update={"everywhere": everywhere}).settings(VARIANT)


def released_detris(params: Params, state: Mapping[str, Tensor], tokenizer: Tokenizer) -> tuple[Settings, Segmenter]:
    """Return the settings of a released checkpoint and its Segmenter in eval mode.

    Raises UserError if the checkpoint does not fit the encoders of the scale in use.
    """
    settings = detris_settings(params, state)
    segmenter = build_segmenter(settings, tokenizer)
    load_detris(segmenter, state, settings.grid)
    return settings, segmenter.eval()
