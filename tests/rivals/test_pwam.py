"""LAVT's pixel-word attention: golden numbers of its authors' code, and what it must not see."""

from typing import Any

import pytest
import torch
from torch import Tensor

from wimfris.encoders.vision import Guidance
from wimfris.rivals.pwam import PixelWordAdapter, PixelWordAttention

NAMES = {  # ours -> LAVT's, whose linear layers are convolutions of kernel 1
    "vis_project": "vis_project.0",
    "query": "image_lang_att.f_query.0",
    "key": "image_lang_att.f_key.0",
    "value": "image_lang_att.f_value.0",
    "out": "image_lang_att.W.0",
    "project_mm": "project_mm.0",
}


def test_golden_numbers(golden: Any) -> None:
    for case, width, text_width in (("pwam_d32_h1", 32, 24), ("pwam_d64_h4", 64, 32)):
        arrays = {name: torch.from_numpy(value) for name, value in golden("pwam_reference.npz", case).items()}
        pwam = PixelWordAttention(width, text_width, heads=int(arrays["heads"]))
        names = {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in NAMES.items() for end in ("weight", "bias")}
        assert {f"param/{name}" for name in names.values()} == {name for name in arrays if name.startswith("param/")}
        pwam.load_state_dict({o: arrays[f"param/{t}"].reshape_as(pwam.get_parameter(o)) for o, t in names.items()})
        x = arrays["in/x"].requires_grad_()
        y = pwam(x, arrays["in/words"], arrays["in/mask"] == 0)
        torch.testing.assert_close(y, arrays["out/y"], rtol=1e-4, atol=1e-4 * float(arrays["out/y"].abs().max()))
        (y * torch.arange(y.numel()).cos().view_as(y)).sum().backward()
        largest = max(float(value.abs().max()) for name, value in arrays.items() if name.startswith("grad/"))
        for ours, theirs in {**names, "x": "x"}.items():
            expected = arrays[f"grad/{theirs}"]
            grad = x.grad if ours == "x" else pwam.get_parameter(ours).grad
            assert grad is not None
            # the norms and the softmax make the gradients of three biases zero but for rounding
            atol = 1e-4 * max(float(expected.abs().max()), 0.1 * largest)
            torch.testing.assert_close(grad, expected.reshape_as(grad), rtol=1e-4, atol=atol)


def test_padded_words_and_the_tokens_before_the_patches_have_no_part(stir: Any) -> None:
    adapter = stir(PixelWordAdapter(8, 6, 4, heads=2)).double()
    tokens = torch.randn(2, 3 + 12, 8, dtype=torch.float64, requires_grad=True)
    words = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    padding = torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    out: Tensor = adapter(tokens, Guidance(words, padding, (3, 4)))
    assert (out[:, :3] == 0).all() and (out[:, 3:] != 0).any(dim=-1).all()
    by_tokens, by_words = torch.autograd.grad(out.square().sum(), (tokens, words))
    assert (by_tokens[:, :3] == 0).all() and torch.equal(by_words.any(dim=-1), ~padding)


@pytest.mark.parametrize("heads", [1, 2])
def test_the_scores_of_all_heads_are_scaled_by_the_whole_width(heads: int, stir: Any) -> None:
    """LAVT's scale, against attention by hand."""
    pwam = stir(PixelWordAttention(4, 6, heads=heads)).double()
    x, words = torch.randn(1, 5, 4, dtype=torch.float64), torch.randn(1, 3, 6, dtype=torch.float64)

    def norm(part: Tensor) -> Tensor:
        return (part - part.mean(1, keepdim=True)) / (part.var(1, correction=0, keepdim=True) + 1e-5).sqrt()

    query, key, value = norm(pwam.query(x)), pwam.key(words), pwam.value(words)
    parts = zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True)
    attended = torch.cat([(q @ k.mT / 2).softmax(-1) @ v for q, k, v in parts], dim=-1)
    gelu = torch.nn.functional.gelu
    expected = gelu(pwam.project_mm(gelu(pwam.vis_project(x)) * norm(pwam.out(attended))))
    torch.testing.assert_close(pwam(x, words, torch.zeros(1, 3, dtype=torch.bool)), expected)
