"""Load the frozen encoders: from the hub at a pinned revision, from original weight files, the small built-in pair, or
random weights for tests.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wimfris.data.sentences import vocabulary
from wimfris.data.tokens import ClipTokenizer, PretrainedTokenizer, Tokenizer, WordTokenizer
from wimfris.encoders.backbones import ATTENTION, model_options, text_backbone, vision_backbone
from wimfris.encoders.hub_cache import find_encoder
from wimfris.encoders.original import read_tensors, text_state, vision_state
from wimfris.encoders.vision import interpolate_positions, set_positions
from wimfris.errors import UserError
from wimfris.settings.backbones import TEXT, VISION, TextFamily, VisionFamily
from wimfris.settings.schema import Settings
from wimfris.settings.sections import Backbone, TextBackbone, VisionBackbone

BUILTIN = Path(__file__).parents[1] / "builtin" / "encoders"  # <text|vision>[-small].safetensors and their cards
RANDOM_SEED = 0  # of `source: random`

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no loading reports between the lines of a run


def load_tokenizer(settings: Settings) -> Tokenizer:
    """Return the tokenizer of the text encoder: words for built-in and random encoders, else that of its family."""
    text, length = settings.encoders.text, settings.data.length
    if text.is_hub:
        return _tokenizer_in(find_encoder(text, settings.scale), text, length)
    if text.is_file:
        return ClipTokenizer.beside(Path(text.source), length)
    return WordTokenizer(vocabulary(), length)


def _tokenizer_in(folder: Path, text: TextBackbone, length: int) -> Tokenizer:
    return (ClipTokenizer if text.family == "clip" else PretrainedTokenizer).from_folder(folder, length)


def load_text(settings: Settings, tokenizer: Tokenizer) -> Any:
    """Return the text backbone, which ends sentences with the tokenizer's end-of-text token.

    Raises UserError if the weights are missing or damaged, or do not fit the settings.
    """
    text = settings.encoders.text
    if text.is_hub:
        return _load_text_snapshot(text, tokenizer, find_encoder(text, settings.scale))
    if text.is_file:
        return _load_text_file(text, tokenizer)
    assert isinstance(tokenizer, WordTokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        backbone = new_text(settings, tokenizer)
    if text.source != "random":
        _load_builtin(backbone, text.source.replace("builtin", "text"), " ".join(vocabulary()))
    return backbone


def load_vision(settings: Settings) -> Any:
    """Return the vision backbone, with its positions interpolated as the settings say.

    Raises UserError if the weights are missing or damaged, or do not fit the settings.
    """
    backbone = _load_vision(settings)
    if settings.encoders.vision.positions == "detris":  # transformers interpolates in every pass
        set_positions(backbone, interpolate_positions(backbone.embeddings.position_embeddings, settings.grid))
    return backbone


def new_text(settings: Settings, tokenizer: WordTokenizer) -> Any:
    """Return a text backbone of the settings' size, with fresh weights from torch's global random state."""
    return sized_text(settings.encoders.text, tokenizer.vocabulary_size, tokenizer.length, tokenizer.eot_id)


def new_vision(settings: Settings) -> Any:
    """Return a vision backbone of the settings' size, with fresh weights from torch's global random state."""
    return sized_vision(settings.encoders.vision, settings.data.image_size)


def weights_hash(backbone: nn.Module) -> str:
    """Return the SHA-256 of names and values of the backbone's tensors, which does not depend on their file."""
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
    """Return source, revision, hash and size of both backbones, and the hash of a published tokenizer, as manifests
    record them.
    """
    tokenizer = load_tokenizer(settings)
    backbones = {"text": load_text(settings, tokenizer), "vision": load_vision(settings)}
    described: dict[str, dict[str, Any]] = {
        name: {
            "source": getattr(settings.encoders, name).source,
            "revision": getattr(settings.encoders, name).revision,
            "sha256": weights_hash(backbone),
            "parameters": sum(p.numel() for p in backbone.parameters()),
        }
        for name, backbone in backbones.items()
    }
    if tokenizer.sha256 is not None:
        described["text"]["tokenizer_sha256"] = tokenizer.sha256
    return described


def save_builtin(backbone: nn.Module, path: Path, words: str) -> None:
    """Write a pretrained backbone as safetensors. `words` is its vocabulary, "" for vision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    save_file(state, path, metadata={"vocabulary": words})


def _load_builtin(backbone: nn.Module, name: str, words: str) -> None:
    """Load a built-in encoder into the backbone. Raises UserError if it is missing, or has other sizes or words."""
    path = BUILTIN / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(
            f"{path.name}: the built-in encoder is missing; restore it with git, or train it: `dvc repro -f pretrain`"
        )
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        trained_words = (file.metadata() or {}).get("vocabulary", "")
    expected = backbone.state_dict()
    fits = state.keys() == expected.keys() and all(state[key].shape == expected[key].shape for key in state)
    if not fits or trained_words != words:
        raise UserError(
            f"encoders.{name}: the built-in encoder was trained with other sizes or words than the settings'; "
            "restore the settings, or train it again: `dvc repro -f pretrain`"
        )
    backbone.load_state_dict(state)


def _load_snapshot(kind: TextFamily | VisionFamily, backbone: Backbone, folder: Path, **options: Any) -> Any:
    """Return the model of a snapshot folder. Raises UserError if its checkpoint does not load or lacks weights."""
    try:
        model, report = getattr(transformers, kind.model).from_pretrained(
            folder, output_loading_info=True, local_files_only=True, attn_implementation=ATTENTION, **options
        )
    except (SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"encoder {backbone.source}: {folder} does not load ({reason}); fetch it again") from None
    if report["missing_keys"]:  # transformers would fill in random weights
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"encoder {backbone.source}: its checkpoint lacks {missing}; name another encoder")
    return model


def _config(name: str, backbone: Backbone, folder: Path) -> Any:
    """Return the configuration of a snapshot folder. Raises UserError if it has another family or other sizes."""
    families: Mapping[str, TextFamily | VisionFamily] = TEXT if name == "text" else VISION
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind, actual = families[backbone.family], content.get("model_type")
    if actual not in kind.types:
        fitting = [family for family, other in families.items() if actual in other.types]
        advice = f"set encoders.{name}.family to {fitting[0]}" if fitting else f"the families are {', '.join(families)}"
        raise UserError(
            f"encoder {backbone.source}: its model type is {actual}, not {' or '.join(kind.types)}; {advice}"
        )
    config = getattr(transformers, kind.config).from_pretrained(folder)
    sizes = {"width": config.hidden_size, "layers": config.num_hidden_layers, "heads": config.num_attention_heads}
    if isinstance(backbone, VisionBackbone):
        sizes |= {"patch": config.patch_size, "registers": getattr(config, "num_register_tokens", 0)}
    for key, value in sizes.items():
        if getattr(backbone, key) != value:
            raise UserError(
                f"params.yaml: encoders.{name}.{key} must be {value}, as in {backbone.source}, "
                f"got {getattr(backbone, key)}"
            )
    return config


def _load_text_snapshot(text: TextBackbone, tokenizer: Tokenizer, folder: Path) -> Any:
    kind, config = TEXT[text.family], _config("text", text, folder)
    config.eos_token_id = tokenizer.eot_id  # that of CLIP on the hub is 2, which selects argmax pooling
    sentence = getattr(config, kind.projection) if kind.projection else text.width
    if sentence != text.width:
        raise UserError(
            f"encoder {text.source}: its sentences have width {sentence} and its words {text.width}; name an encoder "
            "where both are equal"
        )
    _check_length(tokenizer, config.max_position_embeddings, text.source)
    return _load_snapshot(kind, text, folder, config=config, **model_options(kind))


def _load_vision(settings: Settings) -> Any:
    vision = settings.encoders.vision
    if vision.is_hub:
        folder = find_encoder(vision, settings.scale)
        config = _config("vision", vision, folder)
        for key, value in VISION[vision.family].settings.items():
            setattr(config, key, value)
        return _load_snapshot(VISION[vision.family], vision, folder, config=config)
    if vision.is_file:
        return _load_vision_file(vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        backbone = new_vision(settings)
    if vision.source != "random":
        _load_builtin(backbone, vision.source.replace("builtin", "vision"), "")
    return backbone


def load_saved_tokenizer(settings: Settings, folder: Path) -> Tokenizer:
    """Return the tokenizer of an exported model that holds its encoders."""
    if settings.encoders.text.is_public:
        return _tokenizer_in(folder, settings.encoders.text, settings.data.length)
    return WordTokenizer(vocabulary(), settings.data.length)


def load_saved_encoders(settings: Settings, tokenizer: Tokenizer, folder: Path) -> tuple[Any, Any]:
    """Return the backbones of an exported model: text_encoder.safetensors and vision_encoder.safetensors, under
    transformers' names, each with its configuration where `has_own_configuration`.

    Raises UserError if they are missing or damaged, or do not fit the settings.
    """
    text, vision = settings.encoders.text, settings.encoders.vision
    paths = [folder / f"{name}_encoder.safetensors" for name in ("text", "vision")]
    return (
        _load_configured(TEXT[text.family], paths[0], **model_options(TEXT[text.family]))
        if has_own_configuration(text)
        else _load_text_file(text.model_copy(update={"source": str(paths[0])}), tokenizer),
        _load_configured(VISION[vision.family], paths[1])
        if has_own_configuration(vision)
        else _load_vision_file(vision.model_copy(update={"source": str(paths[1])})),
    )


def has_own_configuration(backbone: Backbone) -> bool:
    """Return whether an exported encoder needs its configuration: its family has more than sizes to choose."""
    families: Mapping[str, TextFamily | VisionFamily] = TEXT if isinstance(backbone, TextBackbone) else VISION
    return not families[backbone.family].files


def _load_configured(kind: TextFamily | VisionFamily, path: Path, **options: Any) -> Any:
    try:
        config = getattr(transformers, kind.config).from_json_file(path.with_suffix(".json"))
    except (OSError, ValueError):
        raise UserError(f"{path.with_suffix('.json')}: missing or damaged; export the model again") from None
    model = getattr(transformers, kind.model)._from_config(config, attn_implementation=ATTENTION, **options)
    return _load_state(model, read_tensors(path), str(path))


def _load_text_file(text: TextBackbone, tokenizer: Tokenizer) -> Any:
    state = text_state(Path(text.source))
    embeddings = "text_model.embeddings.{}_embedding.weight"
    words, length = (len(state.get(embeddings.format(name), ())) for name in ("token", "position"))
    _check_length(tokenizer, length, text.source)
    return _load_state(sized_text(text, max(words, 1), length, tokenizer.eot_id), state, text.source)


def _load_vision_file(vision: VisionBackbone) -> Any:
    state = vision_state(Path(vision.source))
    positions = state.get("embeddings.position_embeddings", torch.empty(1, 1, 1))
    grid = round(max(positions.shape[1] - 1, 1) ** 0.5)  # side of the file's position grid
    return _load_state(sized_vision(vision, grid * vision.patch), state, vision.source)


def sized_text(text: TextBackbone, words: int, length: int, end_token: int) -> Any:
    """Return a text backbone of the settings' width and depth, with fresh weights; see `text_backbone`."""
    return text_backbone(
        width=text.width,
        layers=text.layers,
        heads=text.heads,
        vocabulary=words,
        length=length,
        end_token=end_token,
        family=text.family,
    )


def sized_vision(vision: VisionBackbone, image_size: int) -> Any:
    """Return a vision backbone of the settings' width and depth, with fresh weights; see `vision_backbone`."""
    return vision_backbone(
        width=vision.width,
        layers=vision.layers,
        heads=vision.heads,
        patch=vision.patch,
        registers=vision.registers,
        image_size=image_size,
        family=vision.family,
    )


def _load_state(backbone: Any, state: Mapping[str, Tensor], source: str) -> Any:
    """Load the weights of a file into the backbone. Raises UserError with the first tensor of another name or shape."""
    expected = backbone.state_dict()
    faults = [f"it lacks {name}" for name in expected if name not in state]
    faults += [f"{name} is not expected" for name in state if name not in expected]
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if faults:
        raise UserError(
            f"{source}: not an encoder of the settings' sizes: {faults[0]} (transformers' names) and "
            f"{len(faults) - 1} more; name another file, or set its sizes in params.yaml"
        )
    backbone.load_state_dict(state)
    return backbone.eval()


def _check_length(tokenizer: Tokenizer, limit: int, source: str) -> None:
    if tokenizer.length > limit:
        raise UserError(
            f"params.yaml: data.tokens must be at most the length of {source} ({limit}), got {tokenizer.length}"
        )
