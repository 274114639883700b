"""Loading the frozen encoders: from the hub's cache, offline; the built-in pair; random weights for tests."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub import copy_hub
from params_file import SHIPPED, write_params
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from wimfris.data.sentences import vocabulary
from wimfris.data.tokens import ClipTokenizer, WordTokenizer
from wimfris.encoders import load
from wimfris.encoders.load import (
    BUILTIN,
    describe_encoders,
    load_text,
    load_tokenizer,
    load_vision,
    save_builtin,
    weights_hash,
)
from wimfris.encoders.text import TextEncoder
from wimfris.errors import UserError
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings

ROOT = Path(__file__).parents[2]
COMMIT = {"text": "a" * 40, "vision": "b" * 40}
HUB = {"text": "maker/clip", "vision": "maker/dino"}
START, END = 18, 19  # of the small vocabulary below


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Scale smoke, with hub encoders."""
    return change(tmp_path)


def change(folder: Path, text: Any = None, vision: Any = None, **rest: Any) -> Settings:
    """Return the settings with these changes of the encoders and, in `rest`, of the data."""
    encoders = {
        "text": {"source": HUB["text"], "revision": COMMIT["text"]} | (text or {}),
        "vision": {"source": HUB["vision"], "revision": COMMIT["vision"]} | (vision or {}),
    }
    return read_params(write_params(folder, {"scales": {"smoke": {"encoders": encoders, "data": rest}}})).settings()


# --- a local hub cache ------------------------------------------------------------------------------------------------


def snapshot(cache: Path, name: str) -> Path:
    """Make the folder where huggingface_hub stores a model's files at its revision."""
    home = cache / f"models--{HUB[name].replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT[name])
    folder = home / "snapshots" / COMMIT[name]
    folder.mkdir(parents=True)
    return folder


def byte_pairs() -> dict[str, Any]:
    """Return a CLIP tokenizer of a few tokens, in tokenizer.json's format."""
    letters = "abcdefgh"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ab</w>", "pad", "<|startoftext|>", "<|endoftext|>"]
    special = [
        {
            "id": tokens.index(token),
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in tokens[-2:]
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["<|endoftext|>", END],
            "cls": ["<|startoftext|>", START],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<|endoftext|>",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: k for k, token in enumerate(tokens)},
            "merges": [["a", "b</w>"]],
        },
    }


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """Small hub models: a whole CLIP, as it is published, with end-of-text id 2 in its configuration; DINOv2."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "max_position_embeddings": 20,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    dino = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            patch_size=4,
            image_size=56,
            num_register_tokens=2,
        )
    )
    return {"text": clip, "vision": dino}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, models: dict[str, nn.Module]) -> Path:
    """A hub cache with both models. CLIP is a pytorch_model.bin, like its pinned revision, and DINOv2 safetensors."""
    folder = tmp_path_factory.mktemp("hub")
    text = snapshot(folder, "text")
    models["text"].config.save_pretrained(text)
    state = models["text"].state_dict() | {"text_model.embeddings.position_ids": torch.arange(20)[None]}
    torch.save(state, text / "pytorch_model.bin")
    (text / "tokenizer.json").write_text(json.dumps(byte_pairs()))
    models["vision"].save_pretrained(snapshot(folder, "vision"))
    return folder


@pytest.fixture
def cache(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the hub cache of the test's own, and no network."""
    return copy_hub(hub, tmp_path, monkeypatch)


def test_hub_text_loads_offline(settings: Settings, cache: Path, models: dict[str, nn.Module]) -> None:
    tokenizer = load_tokenizer(settings)
    assert isinstance(tokenizer, ClipTokenizer)
    assert (tokenizer.eot_id, tokenizer.length) == (END, 16)
    ids = tokenizer.encode("ab c")
    assert list(ids[:5]) == [START, 16, 10, END, 0] and not ids[5:].any()
    backbone = load_text(settings, tokenizer)
    assert backbone.config.eos_token_id == END, "with the hub's 2 it would pool at the largest id"
    own = backbone.state_dict()
    assert all(torch.equal(models["text"].state_dict()[name], value) for name, value in own.items())
    assert {name.split(".")[0] for name in own} == {"text_model", "text_projection"}
    words, sentence = TextEncoder(backbone, {})(torch.from_numpy(ids)[None])
    expected = words[0, 3] @ models["text"].text_projection.weight.T
    torch.testing.assert_close(sentence[0], expected)


def test_a_sentence_is_pooled_at_its_end_not_at_the_largest_id(settings: Settings, cache: Path) -> None:
    backbone = load_text(settings, SimpleNamespace(eot_id=5, length=16))
    words, sentence = TextEncoder(backbone, {})(torch.tensor([[START, 3, 5, END, 0]]))
    torch.testing.assert_close(sentence[0], backbone.text_projection(words[0, 2]))


def test_hub_vision_loads_offline(settings: Settings, cache: Path, models: dict[str, nn.Module]) -> None:
    backbone = load_vision(settings)
    expected = models["vision"].state_dict()
    assert backbone.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())


def test_hub_encoders_are_described(settings: Settings, cache: Path, models: dict[str, nn.Module]) -> None:
    described = describe_encoders(settings)
    for name in ("text", "vision"):
        assert (described[name]["source"], described[name]["revision"]) == (HUB[name], COMMIT[name])
    assert described["vision"]["sha256"] == weights_hash(models["vision"])
    assert described["vision"]["parameters"] == sum(p.numel() for p in models["vision"].parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "wrong", "right"),
    [
        ("text", "width", 32, 16),
        ("text", "layers", 4, 2),
        ("text", "heads", 4, 2),
        ("vision", "width", 32, 16),
        ("vision", "layers", 4, 2),
        ("vision", "heads", 4, 2),
        ("vision", "patch", 8, 4),
        ("vision", "registers", 0, 2),
    ],
)
def test_other_sizes_than_the_hub_s_are_refused(
    name: str, key: str, wrong: int, right: int, cache: Path, tmp_path: Path
) -> None:
    settings = change(tmp_path, **{name: {key: wrong}})
    tokenizer = load_tokenizer(settings)
    with pytest.raises(UserError) as error:
        load_text(settings, tokenizer) if name == "text" else load_vision(settings)
    assert str(error.value) == (f"params.yaml: encoders.{name}.{key} must be {right}, as in {HUB[name]}, got {wrong}")


def test_more_tokens_than_the_hub_s_encoder_has_are_refused(cache: Path, tmp_path: Path) -> None:
    settings = change(tmp_path, tokens={"scenes": 21})
    with pytest.raises(UserError, match=r"data\.tokens must be at most .*\(20\), got 21") as error:
        load_text(settings, load_tokenizer(settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["text", "vision"])
def test_a_missing_snapshot_is_refused_with_the_command(name: str, settings: Settings, cache: Path) -> None:
    shutil.rmtree(cache / f"models--{HUB[name].replace('/', '--')}")
    message = rf"^encoder {HUB[name]} at revision {COMMIT[name]} is not in .* `wimfris encoders fetch --scale smoke`$"
    with pytest.raises(UserError, match=message):
        load_vision(settings) if name == "vision" else load_tokenizer(settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"), [("text", "pytorch_model.bin"), ("text", "config.json"), ("vision", "model.safetensors")]
)
def test_an_incomplete_snapshot_is_refused_with_the_command(
    name: str, file: str, settings: Settings, cache: Path
) -> None:
    """An interrupted download leaves some of the files."""
    tokenizer = load_tokenizer(settings)
    next(cache.glob(f"models--{HUB[name].replace('/', '--')}/snapshots/*/{file}")).unlink()
    with pytest.raises(UserError, match="`wimfris encoders fetch --scale smoke`") as error:
        load_vision(settings) if name == "vision" else load_text(settings, tokenizer)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_some_weights_is_refused(settings: Settings, cache: Path) -> None:
    """transformers would fill in random weights."""
    path = next(cache.glob("models--maker--clip/snapshots/*/pytorch_model.bin"))
    state = torch.load(path)
    del state["text_projection.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"maker/clip.*text_projection\.weight"):
        load_text(settings, load_tokenizer(settings))


def test_pinned_revisions_are_commits() -> None:
    for scale in ("base", "large"):
        for backbone in SHIPPED["scales"][scale]["encoders"].values():
            assert len(backbone["revision"]) == 40 and set(backbone["revision"]) <= set("0123456789abcdef")


# --- random and built-in ----------------------------------------------------------------------------------------------


def settings_at(scale: str) -> Settings:
    return read_params(ROOT / "params.yaml").at_scale(scale).settings()


def test_random_encoders_are_fixed_and_do_not_use_the_random_state() -> None:
    settings = settings_at("smoke")
    before = torch.get_rng_state()
    first = describe_encoders(settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert describe_encoders(settings) == first
    assert first["text"]["source"] == "random" and first["text"]["revision"] is None


def test_the_hash_depends_on_the_weights_alone() -> None:
    settings = settings_at("smoke")
    backbone = load_vision(settings)
    before = weights_hash(backbone)
    assert weights_hash(load_vision(settings)) == before
    with torch.no_grad():
        next(iter(backbone.parameters())).view(-1)[0] += 1e-6
    assert weights_hash(backbone) != before


@pytest.mark.parametrize(("scale", "vision"), [("tiny", "vision"), ("small", "vision-small")])
def test_shipped_encoders_load(scale: str, vision: str) -> None:
    settings = settings_at(scale)
    described = describe_encoders(settings)
    assert load_vision(settings).embeddings.position_embeddings.shape[1] == settings.grid**2 + 1
    for name, file in (("text", "text"), ("vision", vision)):
        state = load_file(BUILTIN / f"{file}.safetensors")
        assert described[name]["parameters"] == sum(value.numel() for value in state.values())
        assert (BUILTIN / f"{file}.safetensors").stat().st_size < 8e6
        assert all(torch.isfinite(value).all() for value in state.values())


@pytest.fixture
def builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Built-in encoders of scale smoke's sizes."""
    folder = tmp_path / "builtin"
    none = {"source": "random", "revision": None}
    random = change(tmp_path, text=none, vision=none)
    tokenizer = load_tokenizer(random)
    assert isinstance(tokenizer, WordTokenizer)
    torch.manual_seed(5)
    for name, backbone in (("text", load_text(random, tokenizer)), ("vision", load_vision(random))):
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(torch.randn_like(parameter))
        save_builtin(backbone, folder / f"{name}.safetensors", " ".join(vocabulary()) if name == "text" else "")
    monkeypatch.setattr(load, "BUILTIN", folder)
    own = {"source": "builtin", "revision": None}
    return change(tmp_path, text=own, vision=own)


def test_built_in_encoders_load_as_they_were_saved(builtin: Settings) -> None:
    for name, backbone in (
        ("text", load_text(builtin, load_tokenizer(builtin))),
        ("vision", load_vision(builtin)),
    ):
        saved = load_file(load.BUILTIN / f"{name}.safetensors")
        state = backbone.state_dict()
        assert saved.keys() == state.keys()
        assert all(torch.equal(saved[key], state[key]) for key in saved)


def test_a_built_in_encoder_with_other_words_is_refused(builtin: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one word replaced, the sizes agree but an id means another word."""
    words = [*vocabulary()[:-1], "zebra"]
    monkeypatch.setattr(load, "vocabulary", lambda: words)
    with pytest.raises(UserError, match=r"encoders\.text: .*other sizes or words.*dvc repro -f pretrain"):
        load_text(builtin, load_tokenizer(builtin))


def test_a_built_in_encoder_of_another_size_is_refused(builtin: Settings, tmp_path: Path) -> None:
    own = {"source": "builtin", "revision": None}
    other = change(tmp_path, text=own | {"width": 32}, vision=own | {"registers": 3})
    with pytest.raises(UserError, match=r"encoders\.text: .*other sizes"):
        load_text(other, load_tokenizer(other))
    with pytest.raises(UserError, match=r"encoders\.vision: .*other sizes"):
        load_vision(other)


def test_a_missing_built_in_encoder_is_refused(builtin: Settings) -> None:
    (load.BUILTIN / "vision.safetensors").unlink()
    with pytest.raises(UserError, match=r"vision\.safetensors: .*missing; .*dvc repro -f pretrain"):
        load_vision(builtin)
