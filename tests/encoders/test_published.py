"""Published encoders of the further families load from the hub's local cache, with their tokenizers, offline."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import copy_hub
from params_file import write_params
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipModel,
)

from wimfris.data.tokens import PretrainedTokenizer
from wimfris.encoders.load import describe_encoders, load_text, load_tokenizer, load_vision
from wimfris.encoders.text import TextEncoder
from wimfris.encoders.vision import VisionEncoder
from wimfris.errors import UserError
from wimfris.inference.predict import Predictor
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.build import build_segmenter

ROOT = Path(__file__).parents[2]
COMMIT = "c" * 40
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "left", "dog", "##s", "of", "a", "red"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def word_pieces(end: bool = True) -> dict[str, Any]:
    """Return a tokenizer of BERT's kind of a few words, in tokenizer.json's format. end: [SEP] ends a sentence."""
    special = [
        {"id": WORDS.index(token), "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token in WORDS[:4]
    ]
    pieces = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pieces += [{"SpecialToken": {"id": "[SEP]", "type_id": 0}}] * end
    ids = {token: {"id": token, "ids": [WORDS.index(token)], "tokens": [token]} for token in ("[CLS]", "[SEP]")}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": normalizer | {"strip_accents": None},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": ids},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: number for number, word in enumerate(WORDS)},
        },
    }


def write_tokenizer(folder: Path, *, end: bool = True) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(word_pieces(end)))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with small models of every further family."""
    torch.manual_seed(0)
    text = SIZES | {"vocab_size": len(WORDS), "max_position_embeddings": 32, "projection_size": 16}
    pictures = {"patch_size": 4, "image_size": 24}
    dino = SIZES | pictures | {"mlp_ratio": 4}
    models = {
        "bert": BertModel(BertConfig(**text)),
        "siglip": SiglipModel(SiglipConfig(text_config=text, vision_config=SIZES | pictures)),
        "dinov2": Dinov2Model(Dinov2Config(**dino)),
        "dinov3_vit": DINOv3ViTModel(DINOv3ViTConfig(**SIZES, **pictures, num_register_tokens=2)),
    }
    root = tmp_path_factory.mktemp("hub")
    for name, model in models.items():
        folder = root / f"models--maker--{name}" / "snapshots" / COMMIT
        model.save_pretrained(folder)
        if name in ("bert", "siglip"):
            write_tokenizer(folder)
    return root


@pytest.fixture
def snapshots(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the hub cache of the test's own, and no network."""
    return copy_hub(hub, tmp_path, monkeypatch)


def settings_of(folder: Path, text: str, vision: str, **changes: Any) -> Settings:
    """Return the settings of scale smoke with encoders of these families from the cache."""
    own = {
        name: {"family": family, "source": f"maker/{family}", "revision": COMMIT}
        for name, family in (("text", text), ("vision", vision))
    }
    own["vision"] |= {"registers": 2 if vision == "dinov3_vit" else 0}
    own["text"] |= changes
    return read_params(write_params(folder, {"scales": {"smoke": {"encoders": own}}})).settings()


def test_a_local_tokenizer_reads_a_sentence(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = PretrainedTokenizer.from_folder(tmp_path, 8)
    cls, sep, unknown = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "[UNK]"))
    words = [WORDS.index(word) for word in ("the", "left", "dog", "##s")]
    assert list(tokenizer.encode("The left dogs ")) == [cls, *words, sep, 0, 0] and tokenizer.eot_id == sep
    assert list(tokenizer.encode("zebra")) == [cls, unknown, sep, 0, 0, 0, 0, 0]
    long = "the left dogs of the red dogs"
    assert tokenizer.count(long) == 11 and tokenizer.encode(long)[-1] == sep, "a long sentence keeps its end"
    before = tokenizer.sha256
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"red"', '"blue"'))
    assert PretrainedTokenizer.from_folder(tmp_path, 8).sha256 != before


def test_a_tokenizer_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        PretrainedTokenizer.from_folder(tmp_path, 8)
    write_tokenizer(tmp_path, end=False)
    with pytest.raises(UserError, match="does not end a sentence with a special token"):
        PretrainedTokenizer.from_folder(tmp_path, 8)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer does not load") as error:
        PretrainedTokenizer.from_folder(tmp_path, 8)
    assert "\n" not in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize(("text", "vision"), [("bert", "dinov3_vit"), ("siglip", "siglip"), ("siglip", "dinov2")])
def test_published_encoders_load_offline(snapshots: Path, tmp_path: Path, text: str, vision: str) -> None:
    settings = settings_of(tmp_path, text, vision)
    tokenizer = load_tokenizer(settings)
    ids = torch.from_numpy(tokenizer.encode("the left dog"))[None]
    words, sentence = TextEncoder(load_text(settings, tokenizer), {})(ids)
    assert words.shape == (1, 16, 16) and sentence.shape == (1, 16)
    encoder = VisionEncoder(load_vision(settings), {}, (0, 1))
    stages = encoder(torch.randn(1, 3, 32, 32), words, torch.zeros(1, 16, dtype=torch.bool))
    assert [tuple(stage.shape) for stage in stages] == [(1, 16, 8, 8)] * 3
    described = describe_encoders(settings)
    assert described == describe_encoders(settings)
    assert described["text"]["tokenizer_sha256"] == tokenizer.sha256 and "tokenizer_sha256" not in described["vision"]


def test_a_model_with_its_encoders_needs_nothing_else(snapshots: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "bert", "siglip")
    tokenizer = load_tokenizer(settings)
    segmenter = build_segmenter(settings, tokenizer)
    facts = {"encoders": {name: {"sha256": value} for name, value in segmenter.encoders.items()}}
    image = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8).numpy()
    predictor = Predictor(settings, segmenter, tokenizer, facts)
    expected = predictor(image, "the red dog")
    predictor.save_pretrained(tmp_path / "exported", encoders=True)
    shutil.rmtree(snapshots)
    again = Predictor.from_pretrained(tmp_path / "exported")
    assert (again(image, "the red dog") == expected).all()
    again.save_pretrained(tmp_path / "copied", encoders=True)
    assert (Predictor.from_pretrained(tmp_path / "copied")(image, "the red dog") == expected).all()


@pytest.mark.parametrize(
    ("text", "vision", "changes", "message"),
    [
        (
            "bert",
            "dinov2",
            {"source": "maker/siglip"},
            "its model type is siglip, not bert; set encoders.text.family to",
        ),
        (
            "bert",
            "dinov2",
            {"source": "maker/dinov2"},
            "its model type is dinov2, not bert; the families are clip, sig",
        ),
        ("siglip", "dinov2", {"width": 32}, "encoders.text.width must be 16, as in maker/siglip, got 32"),
    ],
)
def test_another_encoder_than_the_settings_say_is_refused(
    snapshots: Path, tmp_path: Path, text: str, vision: str, changes: dict[str, Any], message: str
) -> None:
    write_tokenizer(next(snapshots.glob("models--maker--dinov2/snapshots/*")))
    settings = settings_of(tmp_path, text, vision, **changes)
    with pytest.raises(UserError) as error:
        load_text(settings, load_tokenizer(settings))
    assert message in str(error.value) and "\n" not in str(error.value)
