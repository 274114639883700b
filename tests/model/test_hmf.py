from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from wimfris.model.hmf import Gate, Neck, WindowMambaFusion
from wimfris.model.layers import CoordConv
from wimfris.model.scan import scan_windows
from wimfris.model.windows import ORDERS, window_index, window_partition, window_unpartition

WIDTH, TEXT = 8, 6


def fusion(window: Any, gate: Any = "attention", norm: bool = True, **options: Any) -> WindowMambaFusion:
    sizes = {"heads": 2, "state": 3, "conv": 4, "expand": 2}
    return WindowMambaFusion(WIDTH, TEXT, window=window, gate=gate, norm=norm, **sizes, **options)


def tokens_of(grid: tuple[int, int], batch: int = 2) -> tuple[Tensor, Tensor]:
    """Return tokens (B, H W, C) and sentences (B, T)."""
    tokens = torch.randn(batch, grid[0] * grid[1], WIDTH, dtype=torch.float64, requires_grad=True)
    return tokens, torch.randn(batch, TEXT, dtype=torch.float64, requires_grad=True)


def cells_by_window(grid: tuple[int, int], window: int) -> list[Tensor]:
    """Return the raster positions of each window's real cells, by slicing."""
    positions = torch.arange(grid[0] * grid[1]).reshape(grid)
    rows, columns = range(0, grid[0], window), range(0, grid[1], window)
    return [positions[y : y + window, x : x + window].flatten() for y in rows for x in columns]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_putting_back_what_was_cut_is_the_identity(
    height: int, width: int, window_height: int, window_width: int
) -> None:
    window = (min(window_height, height), min(window_width, width))
    tokens = torch.arange(2 * height * width * 3).reshape(2, height * width, 3)
    cells, places = window_index(height, width, window)
    windows = window_partition(tokens, cells)
    count = -(-height // window[0]) * -(-width // window[1])
    assert windows.shape == (2 * count, window[0] * window[1], 3)
    assert torch.equal(window_unpartition(windows, cells, places), tokens)


@pytest.mark.parametrize(("grid", "window"), [((6, 6), 3), ((5, 7), 3), ((4, 6), 1)])
def test_no_gradient_crosses_a_border(stir: Any, grid: tuple[int, int], window: int) -> None:
    wmf = stir(fusion(window)).double()
    tokens, sentence = tokens_of(grid)
    z = wmf.scan(tokens, sentence, grid)
    for cells in cells_by_window(grid, window):
        grad, prefix = torch.autograd.grad(z[0, cells].sum(), (tokens, sentence), retain_graph=True)
        outside = torch.ones(grid[0] * grid[1], dtype=torch.bool)
        outside[cells] = False
        assert (grad[0, outside] == 0).all() and (grad[0, cells] != 0).any(dim=-1).all()
        assert (grad[1] == 0).all() and (prefix[1] == 0).all() and (prefix[0] != 0).any()  # nor an image's


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), st.sampled_from(ORDERS))
def test_orders_and_shifts_walk_through_the_real_cells_and_leave_padding_last(
    height: int, width: int, window: int, shift: int, order: str
) -> None:
    """A window shifted by s is a window of the grid that begins s - w earlier, where the grid has cells."""
    window, shift = min(window, height, width), shift % min(window, height, width)
    sides, shifts = (window, window), (shift, shift)
    cells, places = window_index(height, width, sides, order, shifts)
    positions = torch.arange(height * width).reshape(height, width)
    first = shift - window if shift else 0
    expected = []
    for y in range(first, height, window):
        for x in range(first, width, window):
            part = positions[max(y, 0) : y + window, max(x, 0) : x + window]
            walk = (part.T if order in ("down", "up") else part).flatten()
            expected.append(walk.flip(0) if order in ("backwards", "up") else walk)
    for row, walk in zip(cells, expected, strict=True):
        assert row.tolist() == walk.tolist() + [-1] * (window**2 - len(walk))
    assert torch.equal(cells.flatten()[places], positions.flatten())


TOKENS = {"first": (1, 0), "last": (0, 1), "both": (1, 1), "none": (0, 0)}  # text tokens before and after


@pytest.mark.parametrize("text_token", TOKENS)
@pytest.mark.parametrize("direction", ["raster", "bidirectional"])
def test_text_tokens_and_directions_on_an_uneven_grid(stir: Any, text_token: Any, direction: Any) -> None:
    """Each window is the scan of its real tokens with the text token in its place; backwards likewise."""
    grid, (before, after) = (5, 7), TOKENS[text_token]
    wmf = stir(fusion(3, text_token=text_token, direction=direction)).double()
    tokens, sentence = tokens_of(grid)
    text = wmf.text(sentence)[:, None] if wmf.text else tokens[:, :0]

    def alone(mamba: Any, visual: Tensor) -> Tensor:
        sequence = torch.cat([text] * before + [visual] + [text] * after, dim=1)
        return mamba(wmf.norm(sequence))[:, before : before + visual.shape[1]]

    z = wmf.scan(tokens, sentence, grid)
    assert (wmf.backwards is not None) == (direction == "bidirectional")
    for cells in cells_by_window(grid, 3):
        expected = alone(wmf.mamba, tokens[:, cells])
        if wmf.backwards is not None:
            expected = expected + alone(wmf.backwards, tokens[:, cells].flip(1)).flip(1)
        torch.testing.assert_close(z[:, cells], expected)


@pytest.mark.parametrize(("grid", "window"), [((8, 8), 4), ((5, 7), 3)])
def test_a_second_pass_joins_what_the_first_keeps_apart(stir: Any, grid: tuple[int, int], window: int) -> None:
    """No pass crosses its own borders; both together cross the borders of either, and stay within both windows."""
    wmf = stir(fusion(window, passes=2)).double()
    tokens, sentence = tokens_of(grid, batch=1)
    once = wmf._pass(wmf.norm(tokens), wmf.text(sentence)[:, None], None, grid, moved=True)
    both = wmf.scan(tokens, sentence, grid)
    row, column = (torch.arange(grid[0] * grid[1]) // grid[1], torch.arange(grid[0] * grid[1]) % grid[1])
    plain = row // window * 100 + column // window
    moved = (row - window // 2) // window * 100 + (column - window // 2) // window
    for cell in range(0, grid[0] * grid[1], 3):
        seen = [
            torch.autograd.grad(z[0, cell].sum(), tokens, retain_graph=True)[0][0].any(dim=-1) for z in (once, both)
        ]
        within = moved == moved[cell]
        assert not seen[0][~within].any()
        reachable = torch.isin(plain, plain[within]) | within
        assert not seen[1][~reachable].any()
    last = int((moved == moved[window * grid[1] + window]).nonzero().max())
    seen = torch.autograd.grad(both[0, last].sum(), tokens)[0][0].any(dim=-1)
    assert set(plain[seen].tolist()) > {int(plain[last])}, "a token sees several windows of the first pass"


def test_a_second_pass_that_does_not_move_is_the_first_pass_again(stir: Any) -> None:
    """On F + z; windows of one token and of the whole grid do not move."""
    grid = (4, 6)
    tokens, sentence = tokens_of(grid)
    for window in (1, None):
        two = stir(fusion(window, passes=2)).double()
        one = fusion(window).double()
        one.load_state_dict(two.state_dict())
        first = one.scan(tokens, sentence, grid)
        torch.testing.assert_close(two.scan(tokens, sentence, grid), first + one.scan(tokens + first, sentence, grid))


@pytest.mark.parametrize("mixing", ["ssm", "attention"])
def test_words_stand_in_front_of_each_window_and_padded_ones_change_nothing(stir: Any, mixing: str) -> None:
    grid = (5, 4)
    wmf = stir(fusion(3, text_token="words", mixing=mixing)).double()
    tokens, _ = tokens_of(grid)
    words = torch.randn(2, 4, TEXT, dtype=torch.float64, requires_grad=True)
    padding = torch.tensor([[False, False, True, True], [False] * 4])
    z = wmf.scan(tokens, words, grid, padding)
    for image, length in enumerate((2, 4)):
        for cells in cells_by_window(grid, 3):
            sequence = torch.cat([wmf.text(words[image, :length]), tokens[image, cells]])
            alone = wmf.mamba(wmf.norm(sequence)[None])[0, length:]
            torch.testing.assert_close(z[image, cells], alone)
    (grad,) = torch.autograd.grad(z.sum(), words)
    assert torch.equal(grad.any(dim=-1), ~padding)
    longer = torch.cat([words, torch.randn(2, 3, TEXT, dtype=torch.float64)], dim=1)
    more = torch.cat([padding, torch.ones(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(wmf.scan(tokens, longer, grid, more), z)


@pytest.mark.parametrize("text_token", ["first", "both"])
@pytest.mark.parametrize("direction", ["bidirectional", "cross"])
def test_every_scan_begins_at_the_text(stir: Any, text_token: Any, direction: Any) -> None:
    """So a causal scan both ways has the text at both ends of the window, with `first` as with `both`."""
    grid = (4, 4)
    wmf = stir(fusion(4, text_token=text_token, direction=direction)).double()
    first = fusion(4, text_token="first", direction=direction).double()
    first.load_state_dict(wmf.state_dict())
    tokens, sentence = tokens_of(grid)
    z = wmf.scan(tokens, sentence, grid)
    torch.testing.assert_close(z, first.scan(tokens, sentence, grid))
    text = wmf.norm(wmf.text(sentence))[:, None]
    back = scan_windows(wmf.norm(tokens), text, grid, grid, block=wmf.backwards, order="backwards")
    for cell in (0, 15):
        (grad,) = torch.autograd.grad(back[0, cell].sum(), sentence, retain_graph=True)
        assert grad[0].any(), "the backward scan sees the text, at the far end as at the near one"


PAST_THE_PAPER = {
    "passes": {"passes": 2},
    "windows": {"window": [2, 4, 8, None]},
    "cross": {"direction": "cross"},
    "words": {"text_token": "words"},
    "ssd": {"mixing": "ssd"},
    "all": {"window": [3, None], "passes": 2, "direction": "cross", "text_token": "words"},
    "all, ssd": {"window": [3, None], "passes": 2, "direction": "cross", "text_token": "words", "mixing": "ssd"},
}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("name", PAST_THE_PAPER)
def test_every_backend_computes_every_part(stir: Any, name: str, backend: str) -> None:
    """z and every gradient are those of the reference in float64; with `auto`, the scans are large enough for numba."""
    options = {"window": 4, "backend": backend} | PAST_THE_PAPER[name]
    wmf, grid = stir(fusion(**options)), (8, 8)
    exact = fusion(**options | {"backend": "reference"}).double()
    exact.load_state_dict(wmf.state_dict())
    words = options.get("text_token") == "words"
    tokens, text = torch.randn(16, 64, WIDTH), torch.randn(16, 5, TEXT) if words else torch.randn(16, TEXT)
    padding = torch.arange(5) >= torch.randint(1, 6, (16, 1))

    def derive(model: WindowMambaFusion, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (tokens, text)]
        scanning = [p for key, p in model.named_parameters() if not key.startswith(("gate", "coordinates"))]
        z = model.scan(*leaves, grid, padding if words else None)
        return [z, *torch.autograd.grad((z * torch.arange(z.numel()).view_as(z).cos()).sum(), [*leaves, *scanning])]

    for value, other in zip(derive(wmf, torch.float32), derive(exact, torch.float64), strict=True):
        torch.testing.assert_close(value.double(), other, rtol=1e-3, atol=1e-4 * other.abs().max().item() + 1e-6)


def test_four_directions_are_the_scans_of_the_turned_window(stir: Any) -> None:
    """By columns: the scan of the transposed map. Without the other three, it is the raster scan."""
    grid = (5, 4)
    wmf = stir(fusion(3, direction="cross")).double()
    tokens, sentence = tokens_of(grid)
    turned = tokens.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
    normed, text = wmf.norm(tokens), wmf.norm(wmf.text(sentence))[:, None]

    def one(block: Any, order: str) -> Tensor:
        return scan_windows(normed, text, grid, (3, 3), block=block, order=order)

    by_columns = scan_windows(wmf.norm(turned), text, (4, 5), (3, 3), block=wmf.down)
    torch.testing.assert_close(one(wmf.down, "down"), by_columns.unflatten(1, (4, 5)).transpose(1, 2).flatten(1, 2))
    parts = [one(wmf.mamba, "raster"), one(wmf.backwards, "backwards"), one(wmf.down, "down"), one(wmf.up, "up")]
    z = wmf.scan(tokens, sentence, grid)
    torch.testing.assert_close(z, sum(parts))
    for cells in cells_by_window(grid, 3):
        (grad,) = torch.autograd.grad(z[0, cells[0]].sum(), tokens, retain_graph=True)
        assert torch.equal(grad[0].any(dim=-1).nonzero()[:, 0], cells), "the first token sees the whole window"
    plain = fusion(3).double()
    plain.load_state_dict(
        {k: v for k, v in wmf.state_dict().items() if k.split(".")[0] not in ("backwards", "down", "up")}
    )
    torch.testing.assert_close(plain.scan(tokens, sentence, grid), parts[0])


def test_each_group_of_channels_has_its_window(stir: Any) -> None:
    """Four groups of two channels, before the norm mixes them: an output depends on its group in its window alone."""
    grid = (8, 8)
    wmf = stir(fusion([2, 4, 8, None], norm=False)).double()
    tokens, sentence = tokens_of(grid, batch=1)
    z = wmf.scan(tokens, sentence, grid)
    cell = 63  # the last in the raster order of every window
    for group, window in enumerate((2, 4, 8, 8)):
        channels = slice(2 * group, 2 * group + 2)
        (grad,) = torch.autograd.grad(z[0, cell, channels].sum(), tokens, retain_graph=True)
        seen = torch.zeros(8, 8, dtype=torch.bool)
        seen[8 - window :, 8 - window :] = True
        assert torch.equal(grad[0, :, channels].any(dim=-1), seen.flatten())
        assert grad[0].any(dim=0).sum() == 2, "no other channel"


def test_several_windows_are_plain_fusions_side_by_side(stir: Any) -> None:
    """Two groups equal two blocks of half the width, each with its half of the text; one group is the plain one."""
    grid = (4, 6)
    tokens, sentence = tokens_of(grid)
    wmf = stir(fusion([2, None])).double()
    text = wmf.norm(wmf.text(sentence))[:, None].chunk(2, dim=-1)
    parts = [
        scan_windows(part, own, grid, window, block=block)
        for part, own, window, block in zip(
            wmf.norm(tokens).chunk(2, dim=-1), text, ((2, 2), grid), wmf.mamba, strict=True
        )
    ]
    torch.testing.assert_close(wmf.scan(tokens, sentence, grid), torch.cat(parts, dim=-1))
    one, plain = stir(fusion([2])).double(), fusion(2).double()
    plain.load_state_dict(one.state_dict())
    assert torch.equal(one.scan(tokens, sentence, grid), plain.scan(tokens, sentence, grid))


@pytest.mark.parametrize("text_token", ["last", "none"])
def test_a_causal_scan_never_shows_a_later_text_token(stir: Any, text_token: Any) -> None:
    wmf = stir(fusion(2, text_token=text_token)).double()
    tokens, sentence = tokens_of((4, 4))
    one, other = wmf.scan(tokens, sentence, (4, 4)), wmf.scan(tokens, sentence + 1, (4, 4))
    assert torch.equal(one, other)


def test_attention_in_a_window_sees_its_real_cells_and_the_text(stir: Any) -> None:
    grid = (5, 4)
    wmf = stir(fusion(3, mixing="attention")).double()
    tokens, sentence = tokens_of(grid)
    z = wmf.scan(tokens, sentence, grid)
    for cells in cells_by_window(grid, 3):
        sequence = wmf.norm(torch.cat([wmf.text(sentence)[:, None], tokens[:, cells]], dim=1))
        alone = wmf.mamba.attention(sequence, sequence, sequence, need_weights=False)[0][:, 1:]
        torch.testing.assert_close(z[:, cells], alone)


def test_no_mixing_leaves_the_normed_tokens(stir: Any) -> None:
    wmf = stir(fusion(2, mixing="none")).double()
    tokens, sentence = tokens_of((4, 6))
    assert torch.equal(wmf.scan(tokens, sentence, (4, 6)), wmf.norm(tokens))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixing": "attention"},
        {"mixing": "ssd", "direction": "bidirectional"},
        {"mixing": "none"},
        {"text_token": "none"},
        {"text_token": "words", "direction": "cross", "passes": 2},
    ],
)
def test_no_parameter_is_dead(stir: Any, options: dict[str, Any]) -> None:
    wmf = stir(fusion(2, **options))
    fused, words = torch.randn(2, WIDTH, 4, 4), torch.randn(2, 5, TEXT)
    wmf(fused, words, torch.randn(2, TEXT), torch.zeros(2, 5, dtype=torch.bool)).sum().backward()
    assert [name for name, parameter in wmf.named_parameters() if parameter.grad is None] == []


def test_one_window_of_the_whole_grid_is_no_window(stir: Any) -> None:
    grid = (6, 6)
    whole = stir(fusion(6)).double().eval()
    none = fusion(None).double().eval()
    none.load_state_dict(whole.state_dict())
    tokens, sentence = tokens_of(grid)
    assert torch.equal(whole.scan(tokens, sentence, grid), none.scan(tokens, sentence, grid))
    fused = torch.randn(2, WIDTH, *grid, dtype=torch.float64)
    words, padding = torch.randn(2, 4, TEXT, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.bool)
    assert torch.equal(whole(fused, words, sentence, padding), none(fused, words, sentence, padding))


def test_no_window_is_one_sequence_on_any_grid(stir: Any) -> None:
    grid = (3, 5)
    wmf = stir(fusion(None)).double()
    tokens, sentence = tokens_of(grid)
    sequence = torch.cat([wmf.text(sentence)[:, None], tokens], dim=1)
    torch.testing.assert_close(wmf.scan(tokens, sentence, grid), wmf.mamba(wmf.norm(sequence))[:, 1:])


@pytest.mark.parametrize("grid", [(3, 8), (8, 3)])
def test_a_window_larger_than_the_grid_is_an_error(grid: tuple[int, int]) -> None:
    wmf = fusion(4).double()
    with pytest.raises(ValueError, match="window 4 is larger than the grid"):
        wmf.scan(*tokens_of(grid), grid)


@pytest.mark.parametrize("gate", ["attention", "text", "none"])
@pytest.mark.parametrize("norm", [True, False])
def test_the_equation(stir: Any, gate: str, norm: bool) -> None:
    """G = F + unwindow(z * gate(z)); out = G + CoordConv(G)."""
    wmf = stir(fusion(2, gate, norm)).double().eval()
    assert isinstance(wmf.norm, torch.nn.LayerNorm) == norm
    fused = torch.randn(2, WIDTH, 4, 5, dtype=torch.float64)
    words, sentence = torch.randn(2, 4, TEXT, dtype=torch.float64), torch.randn(2, TEXT, dtype=torch.float64)
    padding = torch.tensor([[False, False, True, True], [False] * 4])
    z = wmf.scan(fused.flatten(2).mT, sentence, (4, 5))
    gated = fused + wmf.gate(z, words, sentence, padding).mT.reshape(fused.shape)
    torch.testing.assert_close(wmf(fused, words, sentence, padding), gated + wmf.coordinates(gated))


def test_gate_by_text_is_one_factor_per_channel(stir: Any) -> None:
    gate = stir(Gate("text", WIDTH, TEXT, heads=2)).double()
    z, sentence = torch.randn(2, 9, WIDTH, dtype=torch.float64), torch.randn(2, TEXT, dtype=torch.float64)
    out = gate(z, torch.randn(2, 4, TEXT, dtype=torch.float64), sentence, torch.zeros(2, 4, dtype=torch.bool))
    attention = gate.attention
    factor = attention.out_proj(sentence @ attention.v_proj_weight.T + attention.in_proj_bias[-WIDTH:])
    torch.testing.assert_close(out, z * factor[:, None])


def test_gate_by_attention_depends_on_the_query_and_on_real_words_alone(stir: Any) -> None:
    gate = stir(Gate("attention", WIDTH, TEXT, heads=2)).double()
    z, words = torch.randn(2, 9, WIDTH, dtype=torch.float64), torch.randn(2, 4, TEXT, dtype=torch.float64)
    padding = torch.tensor([[False, False, True, True], [False] * 3 + [True]])
    out = gate(z, words, torch.zeros(2, TEXT, dtype=torch.float64), padding)
    assert (out / z).var(dim=1).min() > 0  # not one factor per channel
    longer = torch.cat(
        [torch.where(padding[..., None], 30.0, words), torch.full((2, 2, TEXT), 4.0, dtype=torch.float64)], dim=1
    )
    padding = torch.cat([padding, torch.ones(2, 2, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(gate(z, longer, torch.ones(2, TEXT, dtype=torch.float64), padding), out)


def test_coordinates_run_from_minus_one_to_one_columns_before_rows() -> None:
    layer = CoordConv(3).eval()
    seen: list[Tensor] = []
    layer.located.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 3, 4, 5)
    layer(x)
    assert torch.equal(seen[0][:, :3], x)
    torch.testing.assert_close(seen[0][:, 3], torch.linspace(-1, 1, 5).expand(2, 4, 5))
    torch.testing.assert_close(seen[0][:, 4], torch.linspace(-1, 1, 4)[:, None].expand(2, 4, 5))


def test_no_neck_is_the_concatenation_and_one_convolution(stir: Any) -> None:
    neck = stir(Neck(4, WIDTH, None)).double().eval()
    assert {name.split(".")[0] for name in neck.state_dict()} == {"aggregate"}
    convolution, norm, _ = neck.aggregate
    assert convolution.kernel_size == (1, 1)
    stages = [torch.randn(2, 4, 3, 5, dtype=torch.float64) for _ in range(3)]
    words, sentence, padding = torch.randn(2, 4, TEXT), torch.randn(2, TEXT), torch.zeros(2, 4, dtype=torch.bool)
    mixed = torch.einsum("oi,bihw->bohw", convolution.weight[..., 0, 0], torch.cat(stages, dim=1))
    expected = F.batch_norm(mixed, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps).relu()
    torch.testing.assert_close(neck(stages, words, sentence, padding), expected)
