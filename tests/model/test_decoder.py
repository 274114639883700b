import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from wimfris.encoders.text import padding_after
from wimfris.model.decoder import Decoder, Projector, positions_1d, positions_2d

GRIDS = ("native_grid", "interpolated_grid")
GOLDEN_END = 63
THEIRS = (  # our names -> DETRIS's
    (r"^decoder\.(.*)\.self_attention\.", r"decoder.\1.self_attn."),
    (r"^decoder\.(.*)\.self_attention_norm\.", r"decoder.\1.self_attn_norm."),
    (r"^decoder\.(.*)\.cross_attention\.", r"decoder.\1.multihead_attn."),
    (r"^decoder\.(.*)\.cross_attention_norm\.", r"decoder.\1.cross_attn_norm."),
    (r"^projector\.pixels\.", "proj.vis."),
    (r"^projector\.kernel\.", "proj.txt."),
)


@pytest.fixture(scope="module")
def detris(fill: Any) -> torch.nn.ModuleDict:
    """Return decoder and projector with the weights behind the golden numbers."""
    parts = torch.nn.ModuleDict(
        {"decoder": Decoder(512, 512, layers=3, heads=8, ffn=512, dropout=0.1), "projector": Projector(512, 512)}
    )
    weights = {}
    for name, value in parts.state_dict().items():
        theirs = name
        for ours, replacement in THEIRS:
            theirs = re.sub(ours, replacement, theirs)
        weights[name] = torch.from_numpy(fill(theirs, tuple(value.shape)))
    parts.load_state_dict(weights)
    return parts.eval()


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_golden_numbers_of_detris(golden: Any, detris: torch.nn.ModuleDict, grid: str) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in golden("detris_decoder.npz", grid).items()}
    padding = padding_after(arrays["in/token_ids"], GOLDEN_END)
    assert padding.any() and torch.equal(padding, arrays["in/token_ids"] == 0)
    decoded = detris["decoder"](arrays["mid/neck"], arrays["mid/words"], padding)
    logits = detris["projector"](decoded, arrays["mid/sentence"])
    for ours, expected in ((decoded.flatten(2), arrays["mid/decoder"]), (logits, arrays["out/logits"])):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_positions_are_sines_and_cosines_of_column_then_row() -> None:
    words = positions_1d(5, 8)
    for position in range(5):
        for k in range(4):
            angle = position / 10000 ** (2 * k / 8)
            assert words[0, position, 2 * k].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert words[0, position, 2 * k + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    cells = positions_2d(3, 5, 8).reshape(3, 5, 8)
    torch.testing.assert_close(cells[:, :, :4], positions_1d(5, 4).expand(3, -1, -1))
    torch.testing.assert_close(cells[:, :, 4:], positions_1d(3, 4)[0, :, None].expand(-1, 5, -1))


def test_padded_words_change_nothing(stir: Any) -> None:
    decoder = stir(Decoder(16, 12, layers=2, heads=2, ffn=24, dropout=0.1)).double().eval()
    fused, words = torch.randn(2, 16, 3, 4, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    padding = torch.tensor([[False] * 3 + [True] * 2, [False] * 4 + [True]])
    before = decoder(fused, words, padding)
    longer = torch.cat(
        [torch.where(padding[..., None], 50.0, words), torch.full((2, 3, 12), 9.0, dtype=torch.float64)], dim=1
    )
    after = decoder(fused, longer, torch.cat([padding, torch.ones(2, 3, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(after, before)
    assert (decoder(fused, words + 1, padding) != before).any()


def test_each_sample_is_convolved_with_the_kernel_of_its_own_sentence(stir: Any) -> None:
    projector = stir(Projector(8, 6)).double().eval()
    x, sentence = torch.randn(3, 8, 4, 5, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    logits = projector(x, sentence)
    assert logits.shape == (3, 1, 16, 20)
    pixels = projector.pixels(x)
    for k in range(3):
        made = projector.kernel(sentence[k])
        expected = torch.nn.functional.conv2d(pixels[k : k + 1], made[:-1].reshape(1, 4, 3, 3), made[-1:], padding=1)
        torch.testing.assert_close(logits[k : k + 1], expected)


def test_padding_is_what_follows_the_first_end_token(token_ids: Tensor) -> None:
    padding = padding_after(token_ids, 19)
    assert padding.tolist() == [[False] * 4 + [True] * 5, [False] * 6 + [True] * 3, [False] * 9]
    assert padding_after(torch.tensor([[18, 19, 19, 19]]), 19).tolist() == [[False, False, True, True]]
