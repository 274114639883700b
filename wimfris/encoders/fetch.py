"""Downloads of the encoders at their pinned revisions: whole and of the published hashes, or refused; never a hang."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from wimfris.encoders.load import check_file
from wimfris.errors import UserError
from wimfris.settings.schema import Settings, TextBackbone

SECONDS = 10  # that the hub may take for an answer
TEXTS = (".json", ".txt")  # configuration and tokenizer

T = TypeVar("T")


def fetch_encoders(settings: Settings) -> list[Path]:
    """Download the encoders of the settings' scale into the hub's local cache; their snapshot folders. Nothing for
    encoders that are built in or read from files.

    Safetensors alone are fetched; `pytorch_model.bin` where a revision has no other weights, as CLIP's pinned one, and
    that is read as tensors, without running code. Raises UserError, one line, where the hub cannot be reached or does
    not answer, the revision is not there, or a file is not the one that was published.
    """
    chosen = (settings.encoders.text, settings.encoders.vision)
    return [_fetch(backbone, settings.scale) for backbone in chosen if backbone.is_hub]


def wanted(names: list[str]) -> list[str]:
    """Of a revision's files those that loading needs. Raises ValueError where there are no weights that can be read."""
    safe = [name for name in names if name.endswith(".safetensors")]
    weights = safe or [name for name in names if name == "pytorch_model.bin"]
    if not weights:
        raise ValueError("it has neither safetensors nor pytorch_model.bin")
    texts = [name for name in names if "/" not in name and name.endswith(TEXTS) and "index.json" not in name]
    return [*texts, *(name for name in weights if "/" not in name)]


def _fetch(backbone: TextBackbone, scale: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    source, revision = backbone.source, backbone.revision
    assert revision is not None
    told = _ask(backbone, lambda: HfApi().model_info(source, revision=revision, timeout=SECONDS))
    names = _ask(backbone, lambda: wanted([file.rfilename for file in told.siblings or []]))
    folder = Path()
    for name in names:
        options: dict[str, Any] = {"revision": revision, "etag_timeout": SECONDS}
        path = Path(_ask(backbone, lambda n=name, o=options: hf_hub_download(source, n, **o)))  # type: ignore[misc]
        folder = path.parent
        try:
            check_file(path, backbone, scale)
        except UserError:  # of an earlier download that broke off
            _ask(backbone, lambda n=name, o=options: hf_hub_download(source, n, force_download=True, **o))  # type: ignore[misc]
            check_file(path, backbone, scale)
    return folder


def _ask(backbone: TextBackbone, question: Callable[[], T]) -> T:
    """The hub's answer, or one line that says why there is none."""
    try:
        return question()
    except Exception as error:  # those of the hub's HTTP library, which differ from version to version
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"encoder {backbone.source} at revision {backbone.revision}: cannot be fetched ({reason}); "
            "fetch where the hub can be reached and copy its cache (HF_HOME) here, or name original weight files as "
            "`source` (docs/paper_scale.md)"
        ) from None
