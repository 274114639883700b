"""Download the encoders at their pinned revisions from the Hugging Face hub, and verify them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wimfris.encoders.hub_cache import check_file
from wimfris.errors import UserError, one_line
from wimfris.settings.schema import Settings
from wimfris.settings.sections import Backbone

TIMEOUT = 10  # seconds for an answer of the hub
TEXTS = (".json", ".txt")  # configuration and tokenizer


def fetch_encoders(settings: Settings) -> list[Path]:
    """Download the hub encoders of the settings' scale into the local cache and return their snapshot folders.

    Weights are safetensors, or `pytorch_model.bin` where a revision has nothing else, like CLIP's pinned one; it is
    loaded without running code. Raises UserError if the hub does not answer, the revision does not exist, or a file is
    not the published one.
    """
    backbones = (settings.encoders.text, settings.encoders.vision)
    return [_fetch(backbone, settings.scale) for backbone in backbones if backbone.is_hub]


def needed_files(names: list[str]) -> list[str]:
    """Return those of a revision's files that loading needs. Raises ValueError if it has no readable weights."""
    safe = [name for name in names if name.endswith(".safetensors")]
    weights = safe or [name for name in names if name == "pytorch_model.bin"]
    if not weights:
        raise ValueError("it has neither safetensors nor pytorch_model.bin")
    texts = [name for name in names if "/" not in name and name.endswith(TEXTS) and "index.json" not in name]
    return [*texts, *(name for name in weights if "/" not in name)]


def _fetch(backbone: Backbone, scale: str) -> Path:
    from huggingface_hub import HfApi

    with _hub_errors(backbone):
        info = HfApi().model_info(backbone.source, revision=backbone.revision, timeout=TIMEOUT)
        names = needed_files([file.rfilename for file in info.siblings or []])
    folder = Path()
    for name in names:
        path = _download(backbone, name)
        folder = path.parent
        try:
            check_file(path, backbone, scale)
        except UserError:  # an earlier download broke off, or the file was damaged since
            check_file(_download(backbone, name, force=True), backbone, scale)
    return folder


def _download(backbone: Backbone, name: str, *, force: bool = False) -> Path:
    from huggingface_hub import hf_hub_download

    with _hub_errors(backbone):
        return Path(
            hf_hub_download(
                backbone.source, name, revision=backbone.revision, etag_timeout=TIMEOUT, force_download=force
            )
        )


@contextmanager
def _hub_errors(backbone: Backbone) -> Iterator[None]:
    """Turn every exception into a UserError."""
    try:
        yield
    except Exception as error:  # the hub's HTTP library and its exceptions differ from version to version
        raise UserError(
            f"encoder {backbone.source} at revision {backbone.revision}: cannot be fetched ({one_line(error)[:200]}); "
            "fetch it where the hub can be reached and copy its cache (HF_HOME) here, or name original weight files as "
            "`source` (docs/paper_scale.md)"
        ) from None
