"""Where the frozen encoders come from: the hub at a pinned revision, original weight files, the small built-in pair, or
random weights for tests.
"""

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
)

from wimfris.data.scenes import vocabulary
from wimfris.data.tokens import ClipTokenizer, Tokenizer, WordTokenizer
from wimfris.encoders.original import text_state, vision_state
from wimfris.encoders.text import ATTENTION, text_backbone
from wimfris.encoders.vision import vision_backbone
from wimfris.errors import UserError
from wimfris.files import file_hash
from wimfris.settings.schema import Settings, TextBackbone, VisionBackbone

BUILTIN = Path(__file__).parents[1] / "builtin" / "encoders"  # <text|vision>[-small].safetensors and their cards
RANDOM_SEED = 0  # of `source: random`
WEIGHTS = ("*.safetensors", "pytorch_model.bin")  # of a snapshot; CLIP's pinned revision has no safetensors
TOKENIZER = ("tokenizer.json", "vocab.json")  # one of them, of a text encoder's snapshot

M = TypeVar("M", bound=PreTrainedModel)

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no loading reports between the lines of a run


def load_tokenizer(settings: Settings) -> Tokenizer:
    """Words for the built-in and random encoders, CLIP's byte pairs for those of the hub."""
    text, length = settings.encoders.text, settings.data.length
    if text.is_hub:
        return ClipTokenizer.from_folder(find_encoder(text, settings.scale), length)
    if text.is_file:
        return ClipTokenizer.beside(Path(text.source), length)
    return WordTokenizer(vocabulary(), length)


def load_text(settings: Settings, tokenizer: Tokenizer) -> CLIPTextModelWithProjection:
    """The text backbone with the end-of-text id set, so that the sentence is pooled there."""
    text = settings.encoders.text
    if text.is_hub:
        folder = find_encoder(text, settings.scale)
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
    if text.is_file:
        return _load_text_file(text, tokenizer)
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
        folder = find_encoder(vision, settings.scale)
        config = Dinov2WithRegistersConfig.from_pretrained(folder)
        found = {"width": config.hidden_size, "layers": config.num_hidden_layers, "heads": config.num_attention_heads}
        _agree("vision", vision, found | {"patch": config.patch_size, "registers": config.num_register_tokens})
        return _load(Dinov2WithRegistersModel, vision, folder)
    if vision.is_file:
        return _load_vision_file(vision)
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


def check_file(path: Path, backbone: TextBackbone, scale: str) -> None:
    """Raise UserError where a file of the hub's cache is not the one that was published: an interrupted download, a
    damaged disk, an edit.

    The cache keeps a file under its hash on the hub: SHA-256 of large ones, git's SHA-1 of small ones. A file that is
    kept otherwise (a copied snapshot) is not checked here; the names, the shapes and the recorded hash of its tensors
    are.
    """
    blob = path.resolve()
    if blob.parent.name == "blobs" and not _is_blob(blob, blob.stat().st_size, blob.stat().st_mtime_ns):
        raise UserError(
            f"encoder {backbone.source}: {path} is not the published file (interrupted download or damage); delete "
            f"{blob} and run `wimfris encoders fetch --scale {scale}`"
        )


@cache
def _is_blob(path: Path, size: int, modified: int) -> bool:
    """Whether a file's content has the hash that it is named by, or it is named by none."""
    if len(path.name) == 64:
        return file_hash(path) == path.name
    if len(path.name) == 40:
        return hashlib.sha1(f"blob {size}\0".encode() + path.read_bytes()).hexdigest() == path.name
    return True


def find_encoder(backbone: TextBackbone, scale: str) -> Path:
    """The folder of a hub's encoder in the local cache. Raises UserError where it is not there, whole and as published;
    the network is not asked.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    assert backbone.revision is not None
    home = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=backbone.source, repo_type="model")
    folder = home / "snapshots" / backbone.revision
    # an interrupted download leaves a folder with some of the files, and transformers has defaults for a lost config
    weights = [path for pattern in WEIGHTS for path in folder.glob(pattern)]
    tokenizers = [folder / name for name in TOKENIZER if (folder / name).is_file()]
    needs_tokenizer = not isinstance(backbone, VisionBackbone)
    if not weights or not (folder / "config.json").is_file() or (needs_tokenizer and not tokenizers):
        raise UserError(
            f"encoder {backbone.source} at revision {backbone.revision} is not in the local hub cache; "
            f"fetch it with `wimfris encoders fetch --scale {scale}`"
        )
    for path in (*weights, folder / "config.json", *tokenizers):
        check_file(path, backbone, scale)
    return folder


def _load(kind: type[M], backbone: TextBackbone, folder: Path, **options: Any) -> M:
    """The model in a folder. Raises UserError where its checkpoint is damaged or of other shapes, or lacks weights:
    transformers fills in random ones.
    """
    try:
        loaded: Any = kind.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, attn_implementation=ATTENTION, **options
        )
    except (SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"encoder {backbone.source}: {folder} does not load ({reason}); fetch it again") from None
    model: M
    model, told = loaded
    if told["missing_keys"]:
        missing = ", ".join(sorted(told["missing_keys"])[:3])
        raise UserError(f"encoder {backbone.source}: its checkpoint has no {missing}; name one that has")
    return model


def _load_text_file(text: TextBackbone, tokenizer: Tokenizer) -> CLIPTextModelWithProjection:
    state = text_state(Path(text.source))
    embeddings = "text_model.embeddings.{}_embedding.weight"
    vocabulary, length = (len(state.get(embeddings.format(name), ())) for name in ("token", "position"))
    if tokenizer.length > length:
        raise UserError(
            f"params.yaml: data.tokens: {tokenizer.length}, but {text.source} reads at most {length}; lower it"
        )
    backbone = text_backbone(
        width=text.width,
        layers=text.layers,
        heads=text.heads,
        vocabulary=max(vocabulary, 1),
        length=length,
        end_token=tokenizer.eot_id,
    )
    return _fill(backbone, state, text.source)


def _load_vision_file(vision: VisionBackbone) -> Dinov2WithRegistersModel:
    state = vision_state(Path(vision.source))
    positions = state.get("embeddings.position_embeddings", torch.empty(1, 1, 1))
    side = round(max(positions.shape[1] - 1, 1) ** 0.5)  # the grid that the file has positions for
    backbone = vision_backbone(
        width=vision.width,
        layers=vision.layers,
        heads=vision.heads,
        patch=vision.patch,
        registers=vision.registers,
        image_size=side * vision.patch,
    )
    return _fill(backbone, state, vision.source)


def _fill(backbone: M, state: Mapping[str, Tensor], source: str) -> M:
    """The backbone with these weights. Raises UserError that names the first tensor of another name or shape."""
    expected = backbone.state_dict()
    told = [f"it has no {name}" for name in expected if name not in state]
    told += [f"it has {name} besides" for name in state if name not in expected]
    told += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if told:
        raise UserError(
            f"{source}: not an encoder of the settings' sizes: {told[0]} (transformers' names) and {len(told) - 1} "
            "more; name another file, or set params.yaml's encoders to its sizes"
        )
    backbone.load_state_dict(state)
    return backbone.eval()


def _agree(name: str, wanted: TextBackbone, found: Mapping[str, object]) -> None:
    for key, value in found.items():
        if getattr(wanted, key) != value:
            raise UserError(
                f"params.yaml: encoders.{name}.{key}: {getattr(wanted, key)}, "
                f"but {wanted.source} has {value}; set it to that"
            )
