"""The local cache of the Hugging Face hub: find an encoder at its pinned revision and verify its files, offline."""

import hashlib
from functools import cache
from pathlib import Path

from wimfris.errors import UserError
from wimfris.files import file_hash
from wimfris.settings.sections import Backbone, VisionBackbone

WEIGHTS = ("*.safetensors", "pytorch_model.bin")  # CLIP's pinned revision has no safetensors
TOKENIZER = ("tokenizer.json", "vocab.json")  # a text encoder needs one of them


def find_encoder(backbone: Backbone, scale: str) -> Path:
    """Return the snapshot folder of a hub encoder in the local cache.

    Raises UserError if it is missing, incomplete or damaged.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    assert backbone.revision is not None
    home = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=backbone.source, repo_type="model")
    folder = home / "snapshots" / backbone.revision
    # An interrupted download leaves some of the files, and transformers has defaults for a missing configuration.
    weights = [path for pattern in WEIGHTS for path in folder.glob(pattern)]
    tokenizers = [folder / name for name in TOKENIZER if (folder / name).is_file()]
    needs_tokenizer = not isinstance(backbone, VisionBackbone)
    if not weights or not (folder / "config.json").is_file() or (needs_tokenizer and not tokenizers):
        raise UserError(
            f"encoder {backbone.source} at revision {backbone.revision} is not in the local hub cache; "
            f"run `wimfris encoders fetch --scale {scale}`"
        )
    for path in (*weights, folder / "config.json", *tokenizers):
        check_file(path, backbone, scale)
    return folder


def check_file(path: Path, backbone: Backbone, scale: str) -> None:
    """Raise UserError if a file of the hub's cache is not the published one.

    The cache names a file by its hash on the hub: SHA-256 for large files, git's SHA-1 for small ones. A file with any
    other name (of a copied snapshot) passes: the names, shapes and recorded hash of its tensors are checked later.
    """
    blob = path.resolve()
    if blob.parent.name == "blobs" and not _matches_name(blob, blob.stat().st_size, blob.stat().st_mtime_ns):
        raise UserError(
            f"encoder {backbone.source}: {path} is not the published file (interrupted download or damage); delete "
            f"{blob} and run `wimfris encoders fetch --scale {scale}`"
        )


@cache
def _matches_name(path: Path, size: int, modified: int) -> bool:
    """Return whether a file's hash is its name. Size and time of change are part of the cache's key."""
    if len(path.name) == 64:
        return file_hash(path) == path.name
    if len(path.name) == 40:
        return hashlib.sha1(f"blob {size}\0".encode() + path.read_bytes()).hexdigest() == path.name
    return True
