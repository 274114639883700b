"""Original weight files of CLIP and DINOv2 load as the hub's models."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from params_file import SHIPPED, edit_yaml, write_params
from refer_files import FIXTURE, SETS
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from wimfris.cli import prepare, training
from wimfris.data.dataset import every_sentence
from wimfris.data.index import read_index
from wimfris.data.tokens import BYTE_PAIRS, ClipTokenizer
from wimfris.encoders.backbones import vision_backbone
from wimfris.encoders.load import load_text, load_tokenizer, load_vision, weights_hash
from wimfris.encoders.vision import interpolate_positions
from wimfris.errors import UserError
from wimfris.runs.records import read_records
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

ROOT = Path(__file__).parents[2]
MERGES = ["a b</w>", "c d", "cd e</w>"]
IDS = 2 * 256 + len(MERGES) + 2  # of the small vocabulary


def fused(state: dict[str, Tensor], prefix: str, kind: str) -> Tensor:
    return torch.cat([state[f"{prefix}{part}_proj.{kind}"] for part in "qkv"])


def openai(model: nn.Module) -> dict[str, Tensor]:
    """Return a text transformer under the names of OpenAI's CLIP, in half precision, with one weight of its vision."""
    ours = model.state_dict()
    theirs = {
        "token_embedding.weight": ours["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": ours["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": ours["text_model.final_layer_norm.weight"],
        "ln_final.bias": ours["text_model.final_layer_norm.bias"],
        "text_projection": ours["text_projection.weight"].T,
        "logit_scale": torch.tensor(4.6),
        "visual.conv1.weight": torch.ones(2, 3, 4, 4),
    }
    for layer in range(2):
        own, block = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            theirs[f"{block}attn.in_proj_{kind}"] = fused(ours, f"{own}self_attn.", kind)
            theirs[f"{block}attn.out_proj.{kind}"] = ours[f"{own}self_attn.out_proj.{kind}"]
            theirs[f"{block}ln_1.{kind}"] = ours[f"{own}layer_norm1.{kind}"]
            theirs[f"{block}ln_2.{kind}"] = ours[f"{own}layer_norm2.{kind}"]
            theirs[f"{block}mlp.c_fc.{kind}"] = ours[f"{own}mlp.fc1.{kind}"]
            theirs[f"{block}mlp.c_proj.{kind}"] = ours[f"{own}mlp.fc2.{kind}"]
    return {name: value.half() for name, value in theirs.items()}


def meta(model: nn.Module) -> dict[str, Tensor]:
    """Return a DINOv2 with registers under Meta's names."""
    ours = model.state_dict()
    theirs = {
        "cls_token": ours["embeddings.cls_token"],
        "register_tokens": ours["embeddings.register_tokens"],
        "mask_token": ours["embeddings.mask_token"],
        "pos_embed": ours["embeddings.position_embeddings"],
        "patch_embed.proj.weight": ours["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": ours["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": ours["layernorm.weight"],
        "norm.bias": ours["layernorm.bias"],
    }
    for layer in range(2):
        own, block = f"encoder.layer.{layer}.", f"blocks.{layer}."
        theirs[f"{block}ls1.gamma"] = ours[f"{own}layer_scale1.lambda1"]
        theirs[f"{block}ls2.gamma"] = ours[f"{own}layer_scale2.lambda1"]
        for kind in ("weight", "bias"):
            theirs[f"{block}attn.qkv.{kind}"] = fused(ours, f"{own}attention.", kind)
            theirs[f"{block}attn.proj.{kind}"] = ours[f"{own}attention.o_proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                theirs[f"{block}{name}.{kind}"] = ours[f"{own}{name}.{kind}"]
    return theirs


class Holder(nn.Module):
    """Tensors under dotted names, as in a TorchScript archive."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Holder":
        top = cls()
        for name, value in state.items():
            *parents, last = name.split(".")
            place: Any = top
            for parent in parents:
                if parent not in dict(place.named_children()):
                    place.add_module(parent, cls())
                place = place.get_submodule(parent)
            place.register_parameter(last, nn.Parameter(value, requires_grad=False))
        return top


@pytest.fixture(scope="module")
def clip() -> CLIPTextModelWithProjection:
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=IDS,
            hidden_size=16,
            intermediate_size=64,
            projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=20,
            eos_token_id=IDS - 1,
            bos_token_id=IDS - 2,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half())
    return model.eval()


@pytest.fixture(scope="module")
def dino() -> Any:
    torch.manual_seed(0)
    model = vision_backbone(width=16, layers=2, heads=2, patch=4, registers=2, image_size=56)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, clip: Any, dino: Any) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_files(folder, clip, dino)
    return folder


@pytest.fixture
def settings(tmp_path: Path, files: Path) -> Settings:
    """Scale smoke with both encoders in original files."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return change(tmp_path)


def write_files(folder: Path, clip: Any, dino: Any) -> None:
    """Write both encoders in their authors' formats: ViT.pt, with its byte pairs beside it, and dino.pth."""
    torch.jit.script(Holder.from_state(openai(clip))).save(folder / "ViT.pt")
    torch.save(meta(dino), folder / "dino.pth")
    with gzip.open(folder / BYTE_PAIRS, "wt", encoding="utf-8") as file:
        file.write("\n".join(["a header", *MERGES]))


def change(folder: Path, **vision: Any) -> Settings:
    encoders = {"text": {"source": str(folder / "ViT.pt")}, "vision": {"source": str(folder / "dino.pth")} | vision}
    return read_params(write_params(folder, {"scales": {"smoke": {"encoders": encoders}}})).settings()


def test_clip_s_archive_is_the_hub_s_text_model(settings: Settings, clip: Any) -> None:
    tokenizer = load_tokenizer(settings)
    assert isinstance(tokenizer, ClipTokenizer) and tokenizer.eot_id == IDS - 1
    loaded = load_text(settings, tokenizer)
    assert weights_hash(loaded) == weights_hash(clip)
    ids = torch.from_numpy(tokenizer.encode("ab cde"))[None]
    assert ids[0, :5].tolist() == [IDS - 2, 512, 514, IDS - 1, 0]
    with torch.no_grad():
        assert torch.equal(loaded(ids).text_embeds, clip(ids).text_embeds)
        torch.testing.assert_close(loaded(ids).text_embeds[0], clip.text_projection(clip(ids).last_hidden_state[0, 3]))


def test_meta_s_file_is_the_hub_s_vision_model(settings: Settings, dino: Any) -> None:
    loaded = load_vision(settings)
    assert weights_hash(loaded) == weights_hash(dino)
    image = torch.randn(1, 3, 32, 32)  # another grid than the file's: positions are interpolated
    with torch.no_grad():
        assert torch.equal(loaded(image).last_hidden_state, dino(image).last_hidden_state)


def test_positions_may_be_interpolated_as_detris_does(settings: Settings, dino: Any, tmp_path: Path) -> None:
    """From the file's grid of 14 to the images' grid of 8, when the encoder is loaded; the rest is the file's."""
    assert settings.encoders.vision.positions == "transformers"
    other = change(tmp_path, positions="detris")
    loaded, name = load_vision(other), "embeddings.position_embeddings"
    own, theirs = loaded.state_dict(), dino.state_dict()
    assert torch.equal(own.pop(name), interpolate_positions(theirs.pop(name), 8))
    assert all(torch.equal(value, theirs[key]) for key, value in own.items()) and own.keys() == theirs.keys()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(loaded(image).last_hidden_state, dino(image).last_hidden_state)


def test_safetensors_with_the_same_names_load_too(settings: Settings, dino: Any, tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in meta(dino).items()}, tmp_path / "dino.safetensors")
    other = change(tmp_path, source=str(tmp_path / "dino.safetensors"))
    assert weights_hash(load_vision(other)) == weights_hash(dino)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: state.pop("norm.bias"), r"it lacks layernorm\.bias .*and 0 more"),
        (lambda state: state.update(head=torch.ones(3)), "head is not expected"),
        (lambda state: state.update({"norm.bias": torch.ones(3)}), r"layernorm\.bias is \(3,\), not \(16,\)"),
        (lambda state: state.update({"blocks.0.attn.qkv.bias": torch.ones(4)}), "invalid shape"),
    ],
)
def test_the_file_of_another_model_is_refused(spoil: Any, reason: str, settings: Settings, dino: Any) -> None:
    state = meta(dino)
    spoil(state)
    torch.save(state, settings.encoders.vision.source)
    with pytest.raises(UserError, match=rf"dino\.pth: .*{reason}") as error:
        load_vision(settings)
    assert "\n" not in str(error.value)


def test_missing_or_truncated_files_are_refused(settings: Settings) -> None:
    for source, load in (
        (settings.encoders.vision.source, lambda: load_vision(settings)),
        (settings.encoders.text.source, lambda: load_text(settings, load_tokenizer(settings))),
    ):
        path = Path(source)
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(UserError, match=f"^{path}: damaged"):
            load()
        path.unlink()
        with pytest.raises(UserError, match=f"^{path}: weights not found"):
            load()


def test_a_tokenizer_belongs_beside_the_weights(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / BYTE_PAIRS).write_bytes(b"no gzip")
    with pytest.raises(UserError, match=f"{BYTE_PAIRS}: damaged"):
        load_tokenizer(settings)
    (tmp_path / BYTE_PAIRS).unlink()
    with pytest.raises(UserError, match=f"put CLIP's {BYTE_PAIRS} beside"):
        load_tokenizer(settings)


def test_a_file_has_no_revision(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoders\.vision\.revision must be .*, got b+ \("):
        change(tmp_path, revision="b" * 40)


# --- from official files to records -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_mixed_data_from_official_files_alone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the paper's scales in sequence: REFER's layout, original weights, mixed training."""
    shutil.copytree(FIXTURE, tmp_path / "data")
    shutil.copytree(tmp_path / "data" / "refcoco", tmp_path / "data" / "refcoco+")
    values: dict[str, Any] = {"data__name": "mixed_strict"}
    values |= {f"datasets__{name}__tokens": 20 for name in SHIPPED["datasets"]}
    values |= {f"datasets__{name}__counts": {} for name in SETS}  # the fixture is an excerpt
    values |= {f"scales__smoke__train__{key}": value for key, value in (("epochs", 1), ("batch_size", 4))}
    edit_yaml(tmp_path / "params.yaml", **values)
    monkeypatch.chdir(tmp_path)
    # It is also too small for the controls.
    monkeypatch.setattr("wimfris.training.evaluate.CONDITIONS", {"sentence": every_sentence})
    prepare.data_make()
    prepare.data_prepare()
    assert "left out of training" in capsys.readouterr().out
    prepare.encoders_record()
    training.train("full-0")
    records = read_records(Path("runs/mixed_strict-smoke/core/full-0/records.parquet"))
    assert set(records["dataset"]) == {f"{name} (mixed_strict)" for name in SHIPPED["datasets"]["mixed_strict"]["mix"]}
    assert set(records["split"]) == {"val", "testA", "testB", "test"}
    train, held_out = splits(Path("runs/mixed_strict-smoke/index/index.parquet"))
    assert train and not train & held_out
    training.evaluate(tmp_path / "lavt.parquet", run="full-0", protocol="lavt")
    assert set(read_records(tmp_path / "lavt.parquet")["protocol"]) == {"lavt"}
    assert "refcoco+ (mixed_strict)" in " ".join(capsys.readouterr().out.split())


def splits(path: Path) -> tuple[set[int], set[int]]:
    """Return the image ids of the training split and of all others."""
    index = read_index(path)
    trained = index["split"] == "train"
    return set(index.loc[trained, "image_id"]), set(index.loc[~trained, "image_id"])
