"""Load a released DETRIS checkpoint into a Segmenter, by a map of names that covers every tensor of both.

The authors' model holds both backbones, under the names of OpenAI's CLIP and Meta's DINOv2, with queries, keys and
values in one tensor. Our names are those of transformers.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from wimfris.encoders.original import QKV, clip_name, dino_name, rename
from wimfris.encoders.vision import interpolate_positions, set_positions
from wimfris.errors import UserError
from wimfris.model.segmenter import Segmenter

ONLY_OURS = "alignment."  # the alignment loss's projection; DETRIS has none, so ours stays as it is
ONLY_THEIRS = ("txt_backbone.logit_scale",)  # of CLIP's contrastive loss; no output depends on it

_ADAPTER = (  # inside an adapter: `dense_branch2.0.conv.weight` -> `mixer.branch2.0.0.weight`
    (r"D_fc1\.", "down."),
    (r"D_fc2\.", "up."),
    (r"dense_branch(\d)\.", r"mixer.branch\1."),
    (r"(?<=\.)conv\.", "0."),
    (r"(?<=\.)bn\.", "1."),
    (r"cross\.multihead_attn\.", "cross.attention."),
    (r"cross\.(image|text|back)_proj\.", r"cross.\1."),
)
_WHOLE = (  # outside the encoders
    (r"^neck\.fusion3\.multihead_attn\.", "neck.gates.0.attention."),
    (r"^neck\.fusion4\.multihead_attn\.", "neck.gates.1.attention."),
    (r"^neck\.fusion5\.multihead_attn\.", "neck.gates.2.attention."),
    (r"^neck\.f3_proj\.", "neck.projections.0."),
    (r"^neck\.f4_proj\.", "neck.projections.1."),
    (r"^neck\.f5_proj\.", "neck.projections.2."),
    (r"^neck\.txt_proj\.", "neck.text."),
    (r"^neck\.aggr\.", "neck.aggregate."),
    (r"^neck\.coordconv\.0\.conv1\.", "neck.coordinates.located."),
    (r"^neck\.coordconv\.1\.", "neck.coordinates.conv."),
    (r"^(decoder\..*\.)self_attn(_norm)?\.", r"\1self_attention\2."),
    (r"^(decoder\..*\.)multihead_attn\.", r"\1cross_attention."),
    (r"^(decoder\..*\.)cross_attn_norm\.", r"\1cross_attention_norm."),
    (r"^proj\.vis\.", "projector.pixels."),
    (r"^proj\.txt\.", "projector.kernel."),
)
_TRANSPOSED = ("txt_backbone.text_projection", "neck.f5_proj.0.weight")  # x @ P; a transposed 1x1 convolution


def our_name(theirs: str) -> str:
    """Return our name of a DETRIS tensor, with `{qkv}` where one of theirs is three of ours; unknown names stay."""
    block = re.match(r"(txt_backbone\.transformer\.resblocks|dinov2\.blocks)\.(\d+)\.adapter\.(.*)", theirs)
    if block:
        encoder = "text" if block[1].startswith("txt") else "vision"
        return f"{encoder}.adapters.{block[2]}.{rename(block[3], _ADAPTER)}"
    if theirs.startswith("txt_backbone."):
        return f"text.backbone.{clip_name(theirs.removeprefix('txt_backbone.'))}"
    if theirs.startswith("dinov2."):
        return f"vision.backbone.{dino_name(theirs.removeprefix('dinov2.'))}"
    return rename(theirs, _WHOLE)


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a DETRIS state dict under our names.

    Fused tensors are split, transposed ones are transposed back, and `module.` prefixes are removed. Raises UserError
    for a tensor whose shape allows no such thing.
    """
    ours: dict[str, Tensor] = {}
    for prefixed, value in state.items():
        theirs = prefixed.removeprefix("module.")
        if theirs in ONLY_THEIRS:
            continue
        name = our_name(theirs)
        if (theirs in _TRANSPOSED and value.dim() < 2) or ("{qkv}" in name and (not value.dim() or len(value) % 3)):
            raise UserError(
                f"DETRIS checkpoint: {theirs} has the impossible shape {tuple(value.shape)}; download the file again"
            )
        if theirs in _TRANSPOSED:
            value = value.transpose(0, 1)
        if "{qkv}" in name:
            for part, rows in zip(QKV, value.chunk(3), strict=True):
                ours[name.replace("{qkv}", part)] = rows
        else:
            ours[name] = value
    return ours


def load_detris(segmenter: Segmenter, state: Mapping[str, Tensor], grid: int) -> None:
    """Load a DETRIS state dict, backbones included, into a Segmenter with DETRIS's adapters and neck.

    grid: patches along a side of the images that will be segmented. The vision backbone's positions are interpolated to
    it as DETRIS does, so that transformers has nothing to interpolate; images of another size would not be processed as
    in DETRIS. `segmenter.alignment`, which DETRIS does not have, stays. Raises UserError where a tensor is missing,
    unknown or of another shape; the model is untouched then.
    """
    ours = translate(state)
    positions = "vision.backbone.embeddings.position_embeddings"
    expected = {name: value for name, value in segmenter.state_dict().items() if not name.startswith(ONLY_OURS)}
    unknown = sorted(name for name in ours if name not in expected)
    missing = sorted(name for name in expected if name not in ours)
    if unknown or missing:
        reasons = [f"it has {unknown[0]} and {len(unknown) - 1} more unknown tensors"] if unknown else []
        reasons += [f"it lacks {missing[0]} and {len(missing) - 1} more"] if missing else []
        raise UserError(f"DETRIS checkpoint: {', '.join(reasons)} (our names); build the model with its layers")
    for name, value in ours.items():
        if name != positions and value.shape != expected[name].shape:
            raise UserError(
                f"DETRIS checkpoint: {name} (our name) is {tuple(value.shape)} in the checkpoint and "
                f"{tuple(expected[name].shape)} in the model; build the model with the checkpoint's sizes"
            )
    shape, width = ours[positions].shape, expected[positions].shape[2]
    if len(shape) != 3 or shape[::2] != (1, width) or round((shape[1] - 1) ** 0.5) ** 2 != shape[1] - 1:
        raise UserError(
            f"DETRIS checkpoint: dinov2.pos_embed must be a class token and a square grid of width {width}, got shape "
            f"{tuple(shape)}; build the model with the checkpoint's sizes"
        )
    resampled = interpolate_positions(ours[positions], grid)
    set_positions(segmenter.vision.backbone, resampled)
    segmenter.load_state_dict(ours | {positions: resampled}, strict=False)


def read_detris(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a released checkpoint (.pth), without running code from it.

    Raises UserError where the file is missing or holds no state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} not found; name a released DETRIS checkpoint") from None
    except (UnpicklingError, RuntimeError, OSError, EOFError):
        raise UserError(f"{path}: torch cannot load it safely; download the released file again") from None
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no `state_dict` of tensors; name a released DETRIS checkpoint")
    return state
