"""Predict the mask of a sentence in an image, with a trained run or an exported model.

An exported model is a folder in huggingface_hub's conventions: config.json, model.safetensors and README.md, its card.
It may also hold the frozen encoders. The model that the package ships is one.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import ValidationError

from wimfris.data.images import read_image
from wimfris.data.letterbox import normalise
from wimfris.data.protocol import PROTOCOLS
from wimfris.data.tokens import ClipTokenizer, PretrainedTokenizer, Tokenizer
from wimfris.encoders.load import (
    has_own_configuration,
    load_saved_encoders,
    load_saved_tokenizer,
    load_text,
    load_tokenizer,
    load_vision,
    weights_hash,
)
from wimfris.encoders.original import read_tensors
from wimfris.errors import UserError
from wimfris.files import replacing, write_text
from wimfris.inference.card import card_text, run_facts
from wimfris.model.segmenter import Segmenter
from wimfris.settings.run import Run
from wimfris.settings.schema import Settings
from wimfris.training.build import assemble, build_segmenter
from wimfris.training.checkpoint import load_weights, save_weights
from wimfris.training.outs import own_files

SHIPPED = Path(__file__).parents[1] / "builtin" / "model"  # the model of `wimfris demo`
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Predictor(ModelHubMixin, library_name="wimfris", license="apache-2.0", pipeline_tag="image-segmentation"):
    """A trained model in eval mode, on the CPU, with its tokenizer.

    facts: what is known of its training (run, commit, data, scores), as its card shows it.
    """

    def __init__(
        self, settings: Settings, segmenter: Segmenter, tokenizer: Tokenizer, facts: dict[str, Any] | None = None
    ) -> None:
        self.settings, self.segmenter, self.tokenizer = settings, segmenter.eval(), tokenizer
        self.facts = facts or {}
        self._source: Path | None = None  # the exported folder that it was loaded from

    @classmethod
    def load(cls, settings: Settings, run: str) -> "Predictor":
        """Load a run of this project: its trained weights on its frozen encoders.

        Raises UserError if they are not this run's, or were trained with other settings or encoders.
        """
        files = own_files(settings, Run.parse(run))
        state, metadata = load_weights(files.weights)
        tokenizer = load_tokenizer(settings)
        segmenter = build_segmenter(settings, tokenizer)
        for name, loaded in segmenter.encoders.items():
            if metadata.get(f"{name}_encoder") != loaded:
                raise UserError(
                    f"{files.weights}: was trained on another {name} encoder; train the run again with `dvc repro`"
                )
        try:
            segmenter.load_trained(state)
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{files.weights}: does not fit the settings ({str(error).splitlines()[0]}); "
                "train the run again with `dvc repro`"
            ) from None
        return cls(settings, segmenter, tokenizer, run_facts(settings, Run.parse(run)))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path = SHIPPED, **options: Any
    ) -> "Predictor":  # the parent's options by name are in `options`
        """Load an exported model: a folder, or a hub id; without a name, the model that the package ships.

        `options` are those of huggingface_hub: revision, cache_dir, token, local_files_only, force_download. Only
        safetensors files are read. Raises UserError where there is no such model, or it is damaged.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{pretrained_model_name_or_path}: neither a folder with an exported model nor a model of the hub "
                f"({reason}); write one with `wimfris export`"
            ) from None
        except json.JSONDecodeError:
            raise UserError(f"{pretrained_model_name_or_path}/{CONFIG}: damaged; export the model again") from None

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> "Predictor":
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=["*.json", "*.safetensors", "*.txt"],
                )
            )
        predictor = cls._from_folder(folder)
        predictor._source = folder
        return predictor

    @classmethod
    def _from_folder(cls, folder: Path) -> "Predictor":
        try:
            facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            settings = Settings.model_validate(facts.pop("settings") | {"group": "core"})
        except FileNotFoundError:
            raise UserError(f"{folder}: no {CONFIG}; name a folder that `wimfris export` wrote") from None
        except (AttributeError, KeyError, TypeError, ValidationError):
            raise UserError(
                f"{folder / CONFIG}: not the settings of a model of this version; export the model again"
            ) from None
        state = read_tensors(folder / WEIGHTS)
        if facts.get("encoders_included"):
            tokenizer = load_saved_tokenizer(settings, folder)
            text, vision = load_saved_encoders(settings, tokenizer, folder)
            hashes = {"text": weights_hash(text), "vision": weights_hash(vision)}
            segmenter = assemble(settings, text, vision, hashes)
        else:
            tokenizer = load_tokenizer(settings)
            segmenter = build_segmenter(settings, tokenizer)
        for name, loaded in segmenter.encoders.items():
            if facts["encoders"][name]["sha256"] != loaded:
                raise UserError(f"{folder}: its {name} encoder is not the one that it was trained on; export it again")
        try:
            segmenter.load_trained(state)
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{folder / WEIGHTS}: does not fit {CONFIG} ({str(error).splitlines()[0]}); export the model again"
            ) from None
        return cls(settings, segmenter, tokenizer, facts)

    def save_pretrained(self, save_directory: str | Path, *, encoders: bool = False, **options: Any) -> str | None:
        """Write config.json, model.safetensors and README.md, and with `encoders` the frozen encoders and the
        tokenizer, so that the folder needs nothing else.

        `options` are those of huggingface_hub: push_to_hub, repo_id and further ones of `push_to_hub`.
        """
        self.facts = self.facts | {"encoders_included": encoders}
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        folder = Path(save_directory)
        if self.facts.get("encoders_included"):
            self._save_encoders(folder)
        hashes = {f"{name}_encoder": value for name, value in self.segmenter.encoders.items()}
        save_weights(self.segmenter.trained_state(), hashes, folder / WEIGHTS)
        config = self.facts | {"settings": self.settings.model_dump(mode="json")}
        write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")
        write_text(folder / "README.md", str(self.generate_model_card()) + "\n")

    def _save_encoders(self, folder: Path) -> None:
        """Write the frozen encoders as they were loaded: some adapter families change the backbones in place."""
        names = ("text_encoder", "vision_encoder")
        if self._source is not None and all((self._source / f"{name}.safetensors").is_file() for name in names):
            for path in self._source.iterdir():
                if path.name.startswith((*names, "tokenizer", "vocab", "merges", "special_tokens")):
                    with replacing(folder / path.name) as partial:
                        shutil.copyfile(path, partial)
            return
        encoders = self.settings.encoders
        backbones = load_text(self.settings, self.tokenizer), load_vision(self.settings)
        for name, backbone, declared in zip(names, backbones, (encoders.text, encoders.vision), strict=True):
            save_weights(backbone.state_dict(), {}, folder / f"{name}.safetensors")
            if has_own_configuration(declared):
                backbone.config.to_json_file(folder / f"{name}.json")
        if isinstance(self.tokenizer, ClipTokenizer | PretrainedTokenizer):
            self.tokenizer.save(folder)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """Return the card: what the model is, its data, scores, limits and licence."""
        return ModelCard(card_text(self.facts, self.settings))

    @torch.no_grad()
    def __call__(self, image: np.ndarray | str | Path, sentence: str) -> np.ndarray:
        """Return the mask (H, W) bool of a sentence in an image: a file, or RGB (H, W, 3) uint8.

        The image is letterboxed as in training; a file is turned by its EXIF orientation. Raises UserError for an image
        that cannot be read, an empty sentence, and a word that the tokenizer does not know.
        """
        if not sentence.strip():
            raise UserError("the sentence is empty; name the object, for example: the red circle")
        if not isinstance(image, np.ndarray):
            image = read_image(Path(image), orient=True)
        size, protocol = self.settings.data.image_size, PROTOCOLS["cris"]
        token_ids = torch.from_numpy(self.tokenizer.encode(sentence))[None]
        pixels = normalise(torch.from_numpy(protocol.image(image, size)))[None]
        logits = self.segmenter(pixels, token_ids).logits
        height, width = image.shape[:2]
        return protocol.predicted(protocol.scores(logits, size)[0], height, width)

    def unread(self, sentence: str) -> str:
        """Return the end of a sentence that is too long for the model, or ""."""
        words = sentence.split()
        fits = len(words)
        while fits and self.tokenizer.count(" ".join(words[:fits])) > self.tokenizer.length:
            fits -= 1
        return " ".join(words[fits:])
