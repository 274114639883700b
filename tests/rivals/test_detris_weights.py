from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.encoders.vision import interpolate_positions
from wimfris.errors import UserError
from wimfris.model.segmenter import Segmenter
from wimfris.rivals.detris_weights import (
    ONLY_THEIRS,
    load_detris,
    our_name,
    read_detris,
    translate,
)

pytestmark = pytest.mark.slow

GRID = 4
QKV = "dinov2.blocks.3.attn.qkv.weight"


@pytest.fixture(scope="module")
def state(states: Any) -> dict[str, Tensor]:
    return states["native_grid"]


@pytest.fixture(scope="module")
def detris(loaded: Any) -> Segmenter:
    return loaded["native_grid"]


def test_the_map_of_names_is_one_to_one_and_onto(state: dict[str, Tensor], detris: Segmenter) -> None:
    ours = translate(state)
    expected = {name for name in detris.state_dict() if not name.startswith("alignment.")}
    assert ours.keys() == expected
    names = [our_name(name) for name in state if name not in ONLY_THEIRS]
    assert len(set(names)) == len(names)
    assert sum(value.numel() for value in ours.values()) == sum(
        value.numel() for name, value in state.items() if name not in ONLY_THEIRS
    )


def test_every_tensor_comes_back_from_the_loaded_model(state: dict[str, Tensor], detris: Segmenter) -> None:
    loaded = detris.state_dict()
    for theirs, value in state.items():
        if theirs in ONLY_THEIRS:
            continue
        name = our_name(theirs)
        fused = [loaded[name.replace("{qkv}", part)] for part in ("q_proj", "k_proj", "v_proj")] if "{" in name else []
        back = torch.cat(fused) if fused else loaded[name]
        if theirs in ("txt_backbone.text_projection", "neck.f5_proj.0.weight"):
            back = back.transpose(0, 1)
        assert torch.equal(back, value), theirs


def test_a_released_file_reads_as_the_state_in_it(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Data-parallel training put a prefix before every name, and the file holds more than weights."""
    few = {name: value for name, value in state.items() if name.startswith(("decoder.norm.", "dinov2.blocks.3.attn."))}
    path = tmp_path / "best_model.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in few.items()}}, path)
    ours, expected = translate(read_detris(path)), translate(few)
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)


def test_a_loaded_model_is_frozen_as_before_and_has_positions_for_its_grid(loaded: Any, states: Any) -> None:
    for grid, segmenter in loaded.items():
        frozen = {name for name, parameter in segmenter.named_parameters() if not parameter.requires_grad}
        assert frozen == {name for name, _ in segmenter.named_parameters() if ".backbone." in name}
        positions = segmenter.vision.backbone.embeddings.position_embeddings
        assert torch.equal(positions, interpolate_positions(states[grid]["dinov2.pos_embed"], GRID))
        assert positions.shape == (1, 1 + GRID * GRID, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.norm.bias": None}, r"lacks decoder\.norm\.bias"),
        ({QKV: None}, r"lacks vision\.backbone\.encoder\.layer\.3\.attention\.k_proj\.weight and 2 more"),
        ({"neck.f6_proj.0.weight": torch.zeros(1)}, r"has neck\.f6_proj\.0\.weight"),
        ({"dinov2.blocks.2.adapter.D_fc1.bias": torch.zeros(32)}, r"has vision\.adapters\.2\.down\.bias"),
        ({"proj.txt.bias": torch.zeros(7)}, r"projector\.kernel\.bias .* \(7,\) in the checkpoint and \(2305,\)"),
        ({QKV: torch.zeros(190, 64)}, r"impossible shape \(190, 64\)"),
        ({QKV: torch.zeros(96, 64)}, r"k_proj|q_proj"),
        ({"txt_backbone.text_projection": torch.zeros(512)}, r"impossible shape"),
        ({"dinov2.pos_embed": torch.zeros(1, 16, 64)}, r"must be a class token and a square grid"),
        ({"dinov2.pos_embed": torch.zeros(1, 17, 32)}, r"must be a class token and a square grid of width 64"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error_of_one_line_and_changes_nothing(
    state: dict[str, Tensor], detris: Segmenter, changes: dict[str, Tensor | None], message: str
) -> None:
    changed = {name: value for name, value in (state | changes).items() if value is not None}
    before = {name: (value.data_ptr(), value._version) for name, value in detris.state_dict().items()}
    with pytest.raises(UserError, match=message) as error:
        load_detris(detris, changed, GRID)
    assert "\n" not in str(error.value)
    assert {name: (value.data_ptr(), value._version) for name, value in detris.state_dict().items()} == before


def test_files_that_are_no_checkpoint_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with pytest.raises(UserError, match="not found"):
        read_detris(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot load it safely"):
        read_detris(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot load it safely"):
        read_detris(path)
    torch.save({"state_dict": {"a": Path("code")}}, path)  # would run code
    with pytest.raises(UserError, match="cannot load it safely"):
        read_detris(path)
    for content in ({"weights": {}}, [1, 2], {"state_dict": {"a": 1}}):
        torch.save(content, path)
        with pytest.raises(UserError, match="no `state_dict`"):
            read_detris(path)


def test_positions_are_interpolated_at_a_slightly_larger_scale() -> None:
    positions = torch.randn(1, 1 + 36, 8)
    assert interpolate_positions(positions, 6) is positions
    made = interpolate_positions(positions, 4)
    assert made.shape == (1, 1 + 16, 8) and torch.equal(made[:, 0], positions[:, 0])
    grid = positions[:, 1:].reshape(1, 6, 6, 8).permute(0, 3, 1, 2)
    # sampling theirs: cell i's centre lies at (i + 0.5) * 6 / 4.1 - 0.5, not at (i + 0.5) * 6 / 4 - 0.5
    centres = (torch.arange(4) + 0.5) * 6 / 4.1 - 0.5
    across = 2 * (centres + 0.5) / 6 - 1
    where = torch.stack(torch.meshgrid(across, across, indexing="xy"), dim=-1)[None]
    expected = F.grid_sample(grid, where, mode="bicubic", padding_mode="border", align_corners=False)
    torch.testing.assert_close(made[:, 1:], expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)
    constant = torch.full((1, 1 + 36, 8), 0.5)
    torch.testing.assert_close(interpolate_positions(constant, 9), torch.full((1, 1 + 81, 8), 0.5))
