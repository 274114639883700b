"""Figures: the same input gives the same bytes, every run is drawn, and bad input is refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wimfris.errors import UserError
from wimfris.results.figures import (
    LOSSES,
    PUBLISHED_EMPHASIS,
    QUANTILES,
    Example,
    emphasis,
    gallery,
    learning_curves,
    saved_figure,
)

REPOSITORY = Path(__file__).parents[2]


def log(seed: int, layers: tuple[int, ...] = (1, 3, 5), epochs: int = 3, steps: int = 4) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    events: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        for step in range(1, steps + 1):
            losses = {name: float(random.random()) for name in LOSSES}
            events.append({"event": "step", "epoch": epoch, "step": 20 * (step + steps * (epoch - 1)), **losses})
        alphas = {str(layer): float(random.random()) for layer in layers}
        losses = {name: float(random.random()) for name in LOSSES}
        events.append(
            {
                "event": "epoch",
                "epoch": epoch,
                "step": 20 * steps * epoch,
                "val_miou": 0.1 * epoch,
                "emphasis": alphas,
                **losses,
            }
        )
    return events


def examples(**changes: Any) -> list[Example]:
    random = np.random.default_rng(0)
    made = []
    for index, label in enumerate(QUANTILES):
        height, width = 16 + 4 * index, 20
        target = np.zeros((height, width), bool)
        target[3:9, 4:12] = True
        given: dict[str, Any] = {
            "image": random.integers(0, 256, (height, width, 3), dtype=np.uint8),
            "target": target,
            "prediction": np.roll(target, 2, axis=1),
            "sentence": "the 2nd largest thing for $5 or $6, left of the one_with a very long description & more of it",
            "iou": 0.6,
            "label": label,
        }
        made.append(Example(**(given | changes)))
    return made


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the figures that are saved during a test."""
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, *args: Any, **options: Any) -> None:
        if options["format"] == "png":
            figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def learned(runs: range = range(2), layers: tuple[int, ...] = (1, 3, 5), epochs: int = 3) -> pd.DataFrame:
    """Make the emphasis of runs of `full`, random alphas by epoch and layer."""
    rows = [
        {"run": f"full-{seed}", "variant": "full", "seed": seed, "epoch": epoch, "layer": layer}
        for seed in runs
        for epoch in range(1, epochs + 1)
        for layer in layers
    ]
    return pd.DataFrame(rows).assign(alpha=np.random.default_rng(0).random(len(rows)))


def axes_of(figure: Figure) -> dict[str, Axes]:
    return {axis.get_title(): axis for axis in figure.axes}


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    logs = {f"full-{seed}": log(seed) for seed in range(2)}
    for name in ("a", "b"):
        learning_curves(logs, tmp_path / name / "curves.png")
        emphasis(learned(), tmp_path / name / "emphasis.png")
        gallery(examples(), tmp_path / name / "gallery.png")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["curves.png", "emphasis.png", "gallery.png"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.slow
def test_learning_curves_draw_every_run(tmp_path: Path, drawn: list[Figure]) -> None:
    logs = {f"full-{seed}": log(seed) for seed in range(3)}
    learning_curves(logs, tmp_path / "curves.png")
    axes = axes_of(drawn[0])
    for name, title in LOSSES.items():
        lines = axes[title].get_lines()
        assert len(lines) == len(logs)
        for line, events in zip(lines, logs.values(), strict=True):
            steps = [event for event in events if event["event"] == "step"]
            np.testing.assert_array_equal(line.get_xdata(), [event["step"] for event in steps])
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [event[name] for event in steps])
    (first, *_) = axes["mIoU on val (%)"].get_lines()
    np.testing.assert_allclose(np.asarray(first.get_ydata(), float), [10, 20, 30])


@pytest.mark.slow
def test_a_long_run_is_averaged(tmp_path: Path, drawn: list[Figure]) -> None:
    logs = {"full-0": log(0, epochs=1, steps=1000)}
    learning_curves(logs, tmp_path / "curves.png")
    (line,) = axes_of(drawn[0])["Total loss"].get_lines()
    losses = [event["loss"] for event in logs["full-0"] if event["event"] == "step"]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), np.reshape(losses, (200, 5)).mean(axis=1))


@pytest.mark.slow
def test_a_run_without_steps_shows_its_epochs(tmp_path: Path, drawn: list[Figure]) -> None:
    learning_curves({"full-0": log(0, steps=0)}, tmp_path / "curves.png")
    (line,) = axes_of(drawn[0])["Dice"].get_lines()
    assert len(np.asarray(line.get_xdata())) == 3


def test_emphasis_shows_the_last_epoch_and_its_mean(tmp_path: Path, drawn: list[Figure]) -> None:
    alphas = learned(layers=(1, 3, 11))
    emphasis(alphas, tmp_path / "emphasis.png")
    axes = axes_of(drawn[0])
    mean, *_ = axes["After the last epoch"].get_lines()
    last = alphas[alphas["epoch"] == 3].groupby("layer")["alpha"].mean()
    np.testing.assert_array_equal(mean.get_xdata(), [1, 3, 11])
    np.testing.assert_allclose(np.asarray(mean.get_ydata(), float), last)
    assert len(axes["Over training"].get_lines()) == 2 * 3
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["full-0", "full-1", "mean"]


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "shown"), [("tiny", False), ("base", True)])
def test_the_papers_ranges_are_drawn_only_at_its_scale(
    tmp_path: Path, drawn: list[Figure], scale: str, shown: bool
) -> None:
    emphasis(learned(), tmp_path / "emphasis.png", scale)
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert ("paper, ViT-B" in labels) == shown


def test_the_papers_ranges_are_the_published_ones() -> None:
    table = pd.read_csv(REPOSITORY / "reports" / "published.csv")
    published = table[table["table"] == "F6"].set_index("variant")["value"]
    assert len(published) == 2 * len(PUBLISHED_EMPHASIS)
    for (first, last), (low, high) in PUBLISHED_EMPHASIS.items():
        for end, value in (("low", low), ("high", high)):
            assert published[f"learned alpha in layers {first}-{last} ({end} end)"] == value


@pytest.mark.slow
def test_texts_of_the_gallery_do_not_overlap(tmp_path: Path, drawn: list[Figure]) -> None:
    shown = [*examples(), *examples(label="90th percentile"), *examples(label="lowest", sentence="")]
    gallery(shown, tmp_path / "gallery.png")
    (figure,) = drawn
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [
        text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label) if text.get_text()
    ]
    boxes = [text.get_window_extent(renderer) for text in [*texts, *figure.legends[0].get_texts()]]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
    titles = [axis.get_title() for axis in figure.axes]
    assert any("$5" in title for title in titles) and "(no sentence)" in titles
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == list(QUANTILES)


def test_the_gallery_keeps_pixels_crisp(tmp_path: Path) -> None:
    blank = np.zeros((8, 8), bool)
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, ::2] = (0, 0, 200)
    changes = {"image": image, "target": blank, "prediction": blank, "sentence": "stripes"}
    gallery(examples(**changes)[:1], tmp_path / "gallery.png")
    blue = imread(tmp_path / "gallery.png")[..., 2][imread(tmp_path / "gallery.png")[..., :2].max(axis=2) == 0]
    assert set(np.round(255 * blue).astype(int)) == {0, 200}


def test_the_gallery_does_not_change_its_input(tmp_path: Path) -> None:
    shown, original = examples(), examples()
    gallery(shown, tmp_path / "gallery.png")
    for one, other in zip(shown, original, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_nothing_to_draw_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learning curves"):
        learning_curves({"full-0": []}, tmp_path / "a.png")
    with pytest.raises(UserError, match="learning curves"):
        learning_curves({}, tmp_path / "a.png")
    with pytest.raises(UserError, match="emphasis"):
        emphasis(learned(range(0)), tmp_path / "a.png")
    with pytest.raises(UserError, match="gallery"):
        gallery([], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_wrong_example_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label 'fair'"):
        gallery(examples(label="fair"), tmp_path / "a.png")
    with pytest.raises(ValueError, match="sizes"):
        gallery(examples(target=np.zeros((2, 2), bool)), tmp_path / "a.png")


@pytest.mark.slow
def test_a_picture_with_the_same_content_is_left_alone(tmp_path: Path) -> None:
    """Another machine's font renderer changes bytes, and nothing that a reader sees."""
    path = tmp_path / "figure.png"

    def draw(height: float, title: str = "Scores") -> None:
        with saved_figure(path, (3, 2)) as figure:
            figure.subplots().set(title=title, ylim=(0, height))

    draw(1.0)
    with Image.open(path) as picture:
        content = picture.info["Content"]
    chunks = PngInfo()
    chunks.add_text("Content", content)
    Image.new("RGB", (30, 20)).save(path, pnginfo=chunks)  # as another renderer would draw it
    other = path.read_bytes()
    draw(1.0)
    assert path.read_bytes() == other
    draw(1.5)
    changed = path.read_bytes()
    assert changed != other
    draw(1.5, "Other scores")
    assert path.read_bytes() != changed
    path.write_bytes(b"not a picture")
    draw(1.0)
    assert Image.open(path).info["Content"] == content
