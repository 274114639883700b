"""Every family of encoders, small and with random weights: adapters act in their place, the backbone stays as it is."""

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from params_file import write_params
from torch import Tensor, nn

from wimfris.encoders.backbones import blocks_of, text_backbone, vision_backbone
from wimfris.encoders.load import weights_hash
from wimfris.encoders.text import TextEncoder
from wimfris.encoders.vision import VisionEncoder
from wimfris.errors import UserError
from wimfris.measure.blank_model import blank_segmenter
from wimfris.settings.backbones import TEXT, VISION
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.settings.sections import RIVALS, TextBackbone, VisionBackbone

ROOT = Path(__file__).parents[2]
PREFIX = {"dinov2_with_registers": 3, "dinov2": 1, "dinov3_vit": 3, "siglip": 0}  # with two registers, where possible
STREAMS = {"clip": "layer_norm2", "siglip": "layer_norm2", "bert": "intermediate"}

vision_families = pytest.mark.parametrize("family", VISION)
text_families = pytest.mark.parametrize("family", TEXT)


class Sine(nn.Module):
    """An adapter that returns a known function of its input."""

    def forward(self, x: Tensor, guidance: Any = None) -> Tensor:
        return torch.sin(x)


@pytest.fixture
def words() -> tuple[Tensor, Tensor]:
    """Words and their padding."""
    return torch.randn(3, 5, 16), torch.tensor([[False] * 3 + [True] * 2, [False] * 5, [False] * 5])


def small_vision(stir: Any, family: str) -> Any:
    """Return a backbone whose learned positions are those of a grid of 8 x 8."""
    registers = 2 if VISION[family].registers else 0
    sizes = {"width": 16, "layers": 4, "heads": 2, "patch": 4, "registers": registers, "image_size": 32}
    return stir(vision_backbone(**sizes, family=family)).eval()


def small_text(stir: Any, family: str) -> Any:
    sizes = {"width": 16, "layers": 3, "heads": 2, "vocabulary": 20, "length": 16, "end_token": 19}
    return stir(text_backbone(**sizes, family=family)).eval()


def settings_with(folder: Path, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> Settings:
    """Return the settings of scale smoke with these changes of its random encoders."""
    changes = {"scales": {"smoke": {"encoders": {"text": text or {}, "vision": vision or {}}}}}
    return read_params(write_params(folder, changes)).settings()


def test_the_settings_name_the_families_of_the_tables() -> None:
    for backbone, families in ((TextBackbone, TEXT), (VisionBackbone, VISION)):
        field = backbone.model_fields["family"]
        assert list(get_args(field.annotation)) == (list(families) if families is TEXT else list(VISION))
        assert field.default == next(iter(families)), "the built-in encoders are of the first family"


# --- vision -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@vision_families
@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
def test_untrained_vision_adapters_change_nothing(
    build: Any, stir: Any, words: tuple[Tensor, Tensor], family: str, shape: tuple[int, int]
) -> None:
    """The three maps are those of the backbone alone, without class and register tokens, at any size of the image."""
    backbone, image = small_vision(stir, family), torch.randn(3, 3, *shape)
    names, grid = list(backbone.state_dict()), (shape[0] // 4, shape[1] // 4)
    encoder = VisionEncoder(backbone, {layer: build["msa"]("zero") for layer in (1, 3)}, (1, 2))
    seen = image if VISION[family].colours is None else image * encoder.scale + encoder.shift
    plain = copy.deepcopy(backbone)
    for block in blocks_of(plain):
        block.get_submodule("mlp")._forward_hooks.clear()
        block._forward_hooks.clear()
    hidden: list[Tensor] = []
    for layer in (1, 2):
        blocks_of(plain)[layer].register_forward_hook(lambda module, inputs, output: hidden.append(output))
    hidden.append(plain(pixel_values=seen, **VISION[family].options).last_hidden_state)
    for stage, tokens in zip(encoder(image, *words), hidden, strict=True):
        assert tokens.shape[1] == PREFIX[family] + grid[0] * grid[1]
        assert torch.equal(stage, tokens[:, PREFIX[family] :].mT.unflatten(2, grid))
    assert list(backbone.state_dict()) == names


@torch.no_grad()
@vision_families
def test_a_vision_adapter_adds_to_the_mlp(stir: Any, image: Tensor, words: tuple[Tensor, Tensor], family: str) -> None:
    backbone, layer = small_vision(stir, family), 2
    block, streams = blocks_of(backbone)[layer], []
    norm = block.norm2 if hasattr(block, "norm2") else block.layer_norm2
    norm.register_forward_pre_hook(lambda module, inputs: streams.append(inputs[0]))
    stage = VisionEncoder(backbone, {layer: Sine()}, (layer, layer))(image, *words)[0]
    normed = norm(streams[0])
    added = block.mlp.forward(normed) + torch.sin(normed)
    expected = streams[0] + (block.layer_scale2(added) if hasattr(block, "layer_scale2") else added)
    torch.testing.assert_close(stage.flatten(2).mT, expected[:, PREFIX[family] :])


@vision_families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_stop_at_the_vision_backbone(
    build: Any, stir: Any, image: Tensor, words: tuple[Tensor, Tensor], family: str, checkpointing: bool
) -> None:
    backbone = small_vision(stir, family)
    encoder = VisionEncoder(backbone, {1: build["msa"]()}, (1, 2), checkpointing=checkpointing).train()
    sum(stage.square().sum() for stage in encoder(image, *words)).backward()  # type: ignore[union-attr]
    assert_only_adapters_learn(encoder)


def test_an_image_is_normalised_as_the_family_expects(stir: Any) -> None:
    """The data are normalised by CLIP's mean and standard deviation; DINOv3 learned from images normalised by
    ImageNet's, and SigLIP from images between -1 and 1.
    """
    from wimfris.data.letterbox import normalise

    pixels = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8)
    ours = normalise(pixels.permute(2, 0, 1))
    for family, mean, std in (
        ("siglip", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("dinov3_vit", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ):
        encoder = VisionEncoder(small_vision(stir, family), {}, (1, 2))
        expected = (pixels / 255 - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(ours * encoder.scale + encoder.shift, expected.permute(2, 0, 1))


# --- text -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@text_families
def test_untrained_text_adapters_change_nothing(build: Any, stir: Any, token_ids: Tensor, family: str) -> None:
    backbone = small_text(stir, family)
    words, sentence = TextEncoder(copy.deepcopy(backbone), {})(token_ids)
    names = list(backbone.state_dict())
    encoder = TextEncoder(backbone, {layer: build["mta"]("zero") for layer in (0, 2)})
    for ours, plain in zip(encoder(token_ids), (words, sentence), strict=True):
        assert torch.equal(ours, plain)
    assert words.shape == (3, 9, 16) and sentence.shape == (3, 16) and list(backbone.state_dict()) == names


@torch.no_grad()
@text_families
def test_a_text_adapter_reads_the_stream_and_adds_to_the_mlp(stir: Any, token_ids: Tensor, family: str) -> None:
    backbone, layer = small_text(stir, family), 1
    block, streams, outputs = blocks_of(backbone)[layer], [], []
    block.get_submodule(STREAMS[family]).register_forward_pre_hook(lambda module, inputs: streams.append(inputs[0]))
    block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    TextEncoder(backbone, {layer: Sine()})(token_ids)
    x = streams[0]
    if family == "bert":  # its norms come after the additions
        inner = block.output.dense.forward(block.intermediate.intermediate_act_fn(block.intermediate.dense(x)))
        expected = block.output.LayerNorm(x + inner + torch.sin(x))
    else:
        expected = x + block.mlp.forward(block.layer_norm2(x)) + torch.sin(x)
    torch.testing.assert_close(outputs[0], expected)


@torch.no_grad()
@text_families
def test_padding_changes_neither_words_nor_sentence(build: Any, stir: Any, token_ids: Tensor, family: str) -> None:
    encoder = TextEncoder(small_text(stir, family), {layer: stir(build["mta"]()) for layer in (0, 1, 2)})
    words, sentence = encoder(token_ids)
    longer = torch.cat([token_ids, torch.full((3, 6), 7)], dim=1)
    longer[0, 4:] = 11
    longer_words, longer_sentence = encoder(longer)
    for row, length in enumerate((4, 6, 9)):
        torch.testing.assert_close(longer_words[row, :length], words[row, :length])
    torch.testing.assert_close(longer_sentence, sentence)
    alone_words, alone_sentence = encoder(token_ids[:1, :4])
    torch.testing.assert_close(alone_words, words[:1, :4])
    torch.testing.assert_close(alone_sentence, sentence[:1])


@torch.no_grad()
def test_the_sentence_of_each_family(stir: Any, token_ids: Tensor) -> None:
    ends = torch.tensor([3, 5, 8])
    encoders = {family: TextEncoder(small_text(stir, family), {}) for family in TEXT}
    words, sentence = encoders["siglip"](token_ids)
    head = getattr(encoders["siglip"].backbone, "text_model", encoders["siglip"].backbone).head
    torch.testing.assert_close(sentence, head(words[torch.arange(3), ends]))
    words, sentence = encoders["bert"](token_ids)
    expected = torch.stack([row[: end + 1].mean(0) for row, end in zip(words, ends.tolist(), strict=True)])
    torch.testing.assert_close(sentence, expected)


@text_families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_stop_at_the_text_backbone(
    build: Any, stir: Any, token_ids: Tensor, family: str, checkpointing: bool
) -> None:
    encoder = TextEncoder(small_text(stir, family), {1: build["mta"]()}, checkpointing=checkpointing).train()
    words, sentence = encoder(token_ids)
    (words.square().sum() + (sentence**3).sum()).backward()
    assert_only_adapters_learn(encoder)


def assert_only_adapters_learn(encoder: TextEncoder | VisionEncoder) -> None:
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained and trained == {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert all(name.startswith("adapters.1.") for name in trained)


# --- the whole model --------------------------------------------------------------------------------------------------


PAIRS = [("siglip", "siglip"), ("bert", "dinov3_vit"), ("clip", "dinov2")]
STEPS = [(*pair, adapters) for pair in PAIRS for adapters in ("wimfris", "finetune", "lora")]
STEPS += [("siglip", "siglip", adapters) for adapters in ("detris", "etris", "bottleneck")]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "vision", "adapters"), STEPS)
def test_a_step_trains_what_the_adapters_say(tmp_path: Path, text: str, vision: str, adapters: str) -> None:
    settings = settings_with(
        tmp_path,
        {"family": text},
        {"family": vision, "registers": 2 if VISION[vision].registers else 0, "width": 16, "heads": 2},
    )
    model = settings.model.model_copy(update={"adapters": adapters})
    if adapters in RIVALS:
        sizes = read_params(tmp_path / "params.yaml").rivals["smoke"]
        model = type(model).model_validate(model.model_dump() | {"rivals": sizes})
    segmenter = blank_segmenter(settings.model_copy(update={"model": model}), "cpu").train()
    frozen = {name: weights_hash(getattr(segmenter, name).backbone) for name in ("text", "vision")}
    ids = torch.full((2, 16), 3)
    ids[0, 9:] = ids[1, 12:] = segmenter.text.end_token
    output = segmenter(torch.randn(2, 3, 32, 32), ids)
    (output.logits.square().mean() + output.anchor.mean()).backward()
    trained = {name for name, parameter in segmenter.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in segmenter.named_parameters() if parameter.grad is not None}
    inside = {name for name in trained if ".backbone." in name}
    if adapters not in ("finetune", "lora"):
        assert not inside and trained == set(dict(segmenter.named_parameters())) - {
            name for name, _ in segmenter.named_parameters() if ".backbone." in name
        }
        assert segmenter.trained_state().keys() >= trained and not any(
            ".backbone." in n for n in segmenter.trained_state()
        )
        torch.optim.Adam([p for p in segmenter.parameters() if p.requires_grad]).step()
        assert frozen == {name: weights_hash(getattr(segmenter, name).backbone) for name in ("text", "vision")}
    else:
        assert {name.split(".")[0] for name in inside} == {"text", "vision"}


@pytest.mark.slow
def test_every_variant_of_scale_base_is_built_without_its_weights() -> None:
    """`wimfris estimate` and `wimfris profile` do so on torch's device without storage."""
    params = read_params(ROOT / "params.yaml").at_scale("base")
    millions = {}
    for variant in params.scales["base"]["variants"]:
        segmenter = blank_segmenter(params.settings(variant))
        for name in ("text", "vision"):
            backbone = getattr(segmenter, name).backbone
            millions[f"{variant}.{name}"] = round(sum(p.numel() for p in backbone.parameters()) / 1e6)
    assert millions["vision_dinov2.vision"] == 87 and millions["vision_dinov3.vision"] == 86
    assert millions["vision_siglip2.vision"] == 86, "without its pooling"
    assert millions["text_siglip2.text"] == 282 and millions["text_minilm.text"] == 33


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": {"family": "siglip"}}, "encoders.vision.registers must be 0, because family siglip"),
        ({"vision": {"family": "dinov2", "registers": 1}}, "encoders.vision.registers must be 0"),
        (
            {"vision": {"family": "dinov3_vit", "positions": "detris"}},
            "encoders.vision.positions must be transformers with family dinov3_vit",
        ),
        ({"vision": {"family": "dinov3_vit", "width": 12}}, "encoders.vision.width must be a multiple of 8"),
        ({"vision": {"family": "dinov3_vit", "source": "a.pth"}}, "encoders.vision.source must be a hub id or random"),
        ({"text": {"family": "bert", "source": "builtin"}}, "encoders.text.source must be a hub id or random"),
        ({"text": {"family": "gpt"}}, "encoders.text.family must be one of clip, siglip, bert, got gpt"),
        ({"text": {"family": "bert", "width": 15}}, "encoders.text.width must be a multiple of 2"),
        ({"vision": {"family": "siglip", "registers": 0, "patch": 5}}, "data.image_size must be a multiple of 5"),
    ],
)
def test_unsupported_settings_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        settings_with(tmp_path, **changes)
    assert message in str(error.value) and "\n" not in str(error.value)
