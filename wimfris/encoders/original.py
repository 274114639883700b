"""Original weight files: OpenAI's CLIP (`ViT-B-16.pt`) and Meta's DINOv2 with registers
(`dinov2_vitb14_reg4_pretrain.pth`), read under the tensor names of transformers.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wimfris.errors import UserError

QKV = ("q_proj", "k_proj", "v_proj")  # replacements of `{qkv}`: the original files fuse the three tensors
_CLIP_BLOCK = (
    (r"attn\.out_proj\.", "self_attn.out_proj."),
    (r"attn\.in_proj_(weight|bias)", r"self_attn.{qkv}.\1"),
    (r"ln_(\d)\.", r"layer_norm\1."),
    (r"mlp\.c_fc\.", "mlp.fc1."),
    (r"mlp\.c_proj\.", "mlp.fc2."),
)
_CLIP = (
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^text_projection$", "text_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
)
_DINO_BLOCK = (
    (r"attn\.proj\.", "attention.o_proj."),
    (r"attn\.qkv\.", "attention.{qkv}."),
    (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"),
)
_DINO = (
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^(cls_token|register_tokens|mask_token)$", r"embeddings.\1"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
)
_NOT_TEXT = re.compile(r"visual\.|(logit_scale|input_resolution|context_length|vocab_size)$")  # parts of CLIP


def rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Apply (pattern, replacement) rules to a name, one after the other."""
    for theirs, ours in rules:
        name = re.sub(theirs, ours, name)
    return name


def clip_name(theirs: str) -> str:
    """Return transformers' name of a tensor of OpenAI's text transformer; unknown names stay.

    It holds `{qkv}` where transformers has three tensors.
    """
    block = re.match(r"transformer\.resblocks\.(\d+)\.(.*)", theirs)
    return f"text_model.encoder.layers.{block[1]}.{rename(block[2], _CLIP_BLOCK)}" if block else rename(theirs, _CLIP)


def dino_name(theirs: str) -> str:
    """Return transformers' name of a tensor of Meta's DINOv2; unknown names stay.

    It holds `{qkv}` where transformers has three tensors.
    """
    block = re.match(r"blocks\.(\d+)\.(.*)", theirs)
    return f"encoder.layer.{block[1]}.{rename(block[2], _DINO_BLOCK)}" if block else rename(theirs, _DINO)


def text_state(path: Path) -> dict[str, Tensor]:
    """Return the text transformer of an OpenAI CLIP file under transformers' names, float32.

    Raises UserError as `read_tensors` does.
    """
    state = {name: value for name, value in read_tensors(path).items() if not _NOT_TEXT.match(name)}
    if "text_projection" in state:
        state["text_projection"] = state["text_projection"].T  # OpenAI computes x @ P
    return _rename_all(state, clip_name, path)


def vision_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of Meta's DINOv2 with registers under transformers' names, float32.

    Raises UserError as `read_tensors` does.
    """
    return _rename_all(read_tensors(path), dino_name, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name, on the CPU, without running code that the file holds.

    OpenAI's files are TorchScript archives. Raises UserError if the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{path}: weights not found; put the original file there, or name a hub id in params.yaml")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
            except RuntimeError:  # a TorchScript archive or a damaged file
                content = dict(torch.jit.load(path, map_location="cpu").state_dict())
    except (SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError, ValueError):
        raise UserError(f"{path}: damaged, or not weights that torch can read safely; download it again") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: must hold tensors by name and nothing else; name the original weight file")
    return content


def _rename_all(state: Mapping[str, Tensor], name_of: Callable[[str], str], path: Path) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for theirs, value in state.items():
        name = name_of(theirs)
        if "{qkv}" not in name:
            ours[name] = value.float().contiguous()
            continue
        if not value.dim() or len(value) % 3:
            raise UserError(f"{path}: {theirs} has the invalid shape {tuple(value.shape)}; download the file again")
        for part, rows in zip(QKV, value.float().chunk(3), strict=True):
            ours[name.replace("{qkv}", part)] = rows.contiguous()
    return ours
