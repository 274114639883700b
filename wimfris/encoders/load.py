"""Where the frozen encoders come from: the hub at a pinned revision, the small built-in pair, or random weights for
tests.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
)

from wimfris.data.scenes import vocabulary
from wimfris.data.tokens import ClipTokenizer, Tokenizer, WordTokenizer
from wimfris.encoders.text import text_backbone
from wimfris.encoders.vision import vision_backbone
from wimfris.errors import UserError
from wimfris.params import Settings, TextBackbone

BUILTIN = Path(__file__).parent / "builtin"  # <text|vision>[-small].safetensors and their cards
RANDOM_SEED = 0  # of `source: random`
FETCHED = ("*.json", "*.txt", "*.safetensors", "pytorch_model.bin")  # CLIP's pinned revision has no safetensors

M = TypeVar("M", bound=PreTrainedModel)

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no loading reports between the lines of a run


def load_tokenizer(settings: Settings) -> Tokenizer:
    """Words for the built-in and random encoders, CLIP's byte pairs for those of the hub."""
    text, length = settings.encoders.text, settings.data.length
    if text.is_hub:
        return ClipTokenizer.from_folder(_snapshot(text, settings.scale), length)
    return WordTokenizer(vocabulary(), length)


def load_text(settings: Settings, tokenizer: Tokenizer) -> CLIPTextModelWithProjection:
    """The text backbone with the end-of-text id set, so that the sentence is pooled there."""
    text = settings.encoders.text
    if text.is_hub:
        folder = _snapshot(text, settings.scale)
        config = CLIPTextConfig.from_pretrained(folder)
        config.eos_token_id = tokenizer.eot_id  # the hub's says 2, which means arg-max pooling
        found = {"width": config.hidden_size, "layers": config.num_hidden_layers, "heads": config.num_attention_heads}
        _agree("text", text, found)
        if tokenizer.length > config.max_position_embeddings:
            raise UserError(
                f"params.yaml: data.tokens: {tokenizer.length}, "
                f"but {text.source} reads at most {config.max_position_embeddings}; lower it"
            )
        return _load(CLIPTextModelWithProjection, text, folder, config=config)
    assert isinstance(tokenizer, WordTokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        backbone = new_text(settings, tokenizer)
    if text.source != "random":
        _load_builtin(backbone, text.source.replace("builtin", "text"), " ".join(vocabulary()))
    return backbone


def load_vision(settings: Settings) -> Dinov2WithRegistersModel:
    """The vision backbone."""
    vision = settings.encoders.vision
    if vision.is_hub:
        folder = _snapshot(vision, settings.scale)
        config = Dinov2WithRegistersConfig.from_pretrained(folder)
        found = {"width": config.hidden_size, "layers": config.num_hidden_layers, "heads": config.num_attention_heads}
        _agree("vision", vision, found | {"patch": config.patch_size, "registers": config.num_register_tokens})
        return _load(Dinov2WithRegistersModel, vision, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        backbone = new_vision(settings)
    if vision.source != "random":
        _load_builtin(backbone, vision.source.replace("builtin", "vision"), "")
    return backbone


def new_text(settings: Settings, tokenizer: WordTokenizer) -> CLIPTextModelWithProjection:
    """A text backbone of the settings' size with fresh weights from torch's global random state."""
    text = settings.encoders.text
    return text_backbone(
        width=text.width,
        layers=text.layers,
        heads=text.heads,
        vocabulary=tokenizer.vocabulary_size,
        length=tokenizer.length,
        end_token=tokenizer.eot_id,
    )


def new_vision(settings: Settings) -> Dinov2WithRegistersModel:
    """A vision backbone of the settings' size with fresh weights from torch's global random state."""
    vision = settings.encoders.vision
    return vision_backbone(
        width=vision.width,
        layers=vision.layers,
        heads=vision.heads,
        patch=vision.patch,
        registers=vision.registers,
        image_size=settings.data.image_size,
    )


def weights_hash(backbone: nn.Module) -> str:
    """SHA-256 over names and values of the backbone's tensors: names the encoder whatever file it came from."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if value.dim()
            else str(value.item()).encode()
        )
    return digest.hexdigest()


def describe_encoders(settings: Settings) -> dict[str, dict[str, Any]]:
    """Source, revision, hash and size of both backbones: what identifies them in a manifest."""
    backbones = {"text": load_text(settings, load_tokenizer(settings)), "vision": load_vision(settings)}
    told = {}
    for name, backbone in backbones.items():
        chosen = getattr(settings.encoders, name)
        parameters = sum(p.numel() for p in backbone.parameters())
        told[name] = {
            "source": chosen.source,
            "revision": chosen.revision,
            "sha256": weights_hash(backbone),
            "parameters": parameters,
        }
    return told


def fetch_encoders(settings: Settings) -> list[Path]:
    """Download the encoders of the settings' scale from the hub into its local cache; nothing for built-in ones."""
    from huggingface_hub import snapshot_download

    chosen = (settings.encoders.text, settings.encoders.vision)
    return [
        Path(snapshot_download(b.source, revision=b.revision, allow_patterns=list(FETCHED))) for b in chosen if b.is_hub
    ]


def save_builtin(backbone: nn.Module, name: str, words: str, folder: Path = BUILTIN) -> None:
    """Write a pretrained backbone as `<name>.safetensors`; `words` is the vocabulary it was trained with, "" for
    vision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    save_file(state, folder / f"{name}.safetensors", metadata={"vocabulary": words})


def _load_builtin(backbone: nn.Module, name: str, words: str) -> None:
    path = BUILTIN / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(
            f"{path.name}: the built-in encoder is missing; restore it with git, or train it: `dvc repro -f pretrain`"
        )
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        trained_with = (file.metadata() or {}).get("vocabulary", "")
    expected = backbone.state_dict()
    fits = state.keys() == expected.keys() and all(state[key].shape == expected[key].shape for key in state)
    if not fits or trained_with != words:
        raise UserError(
            f"encoders.{name}: the built-in encoder was trained with other sizes or words than the settings'; "
            "restore them, or train it anew: `dvc repro -f pretrain`"
        )
    backbone.load_state_dict(state)


def _snapshot(backbone: TextBackbone, scale: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    absent = UserError(
        f"encoder {backbone.source} at revision {backbone.revision} is not in the local hub cache; "
        f"fetch it with `wimfris encoders fetch --scale {scale}`"
    )
    try:
        folder = Path(
            snapshot_download(
                backbone.source, revision=backbone.revision, allow_patterns=list(FETCHED), local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        raise absent from None
    # an interrupted download leaves a folder with some of the files, and transformers has defaults for a lost config
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model.bin")]
    if not weights or not (folder / "config.json").is_file():
        raise absent
    return folder


def _load(kind: type[M], backbone: TextBackbone, folder: Path, **options: Any) -> M:
    """The model in a folder. Raises UserError where its checkpoint lacks weights: transformers fills in random ones."""
    loaded: Any = kind.from_pretrained(folder, output_loading_info=True, **options)
    model: M
    model, told = loaded
    if told["missing_keys"]:
        missing = ", ".join(sorted(told["missing_keys"])[:3])
        raise UserError(f"encoder {backbone.source}: its checkpoint has no {missing}; name one that has")
    return model


def _agree(name: str, wanted: TextBackbone, found: Mapping[str, object]) -> None:
    for key, value in found.items():
        if getattr(wanted, key) != value:
            raise UserError(
                f"params.yaml: encoders.{name}.{key}: {getattr(wanted, key)}, "
                f"but {wanted.source} has {value}; set it to that"
            )
