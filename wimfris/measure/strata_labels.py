"""`wimfris measure failure_modes`: which strata a sentence is in, from its target's mask and its landmark's.

`wimfris.results.analyses.strata` compares runs by these labels, without the images.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wimfris.data.index import decode_mask, read_index
from wimfris.data.letterbox import letterbox_mask
from wimfris.data.mixed import dataset_label
from wimfris.data.scenes import CANVAS, SPLITS_WRITTEN, Description, World, draw_scene
from wimfris.errors import UserError
from wimfris.results.measured import write_measure
from wimfris.settings.params import Params


def measure_strata_labels(params: Params) -> None:
    """Write reports/measures/<set>-<scale>/strata-labels.parquet, a row an evaluated sentence, see `strata_labels`.

    Windows are those of `full`. Landmarks are known for the built-in set alone.
    """
    settings = params.settings("full")
    index = read_index(settings.folder / "index" / "index.parquet")
    index = index[index["split"].isin(settings.data.splits)]
    landmarks = {}
    if settings.data.name == "scenes":
        landmarks = scene_landmarks(index, settings.data.scenes.model_dump(), settings.data.image_size)
    window = (settings.scan_window or settings.grid) * settings.encoders.vision.patch
    index = index.assign(dataset=[dataset_label(settings.data, name) for name in index["dataset"]])
    labels = strata_labels(index, partial(letterbox_mask, size=settings.data.image_size), window, landmarks)
    write_measure(labels, settings, "strata-labels.parquet")


def strata_labels(
    index: pd.DataFrame,
    box: Callable[[NDArray[np.uint8]], NDArray[np.floating]],
    window: int,
    landmarks: Mapping[tuple[int, int], NDArray[np.bool_]],
) -> pd.DataFrame:
    """Return one row a sentence of these rows of the index.

    box: mask (H, W) -> letterboxed mask (S, S); window: a window's side in pixels of the letterbox; landmarks:
    (ref_id, sent_id) -> mask (H, W) of the landmark, for the sentences that name one.

    Columns: dataset, split, ref_id, sent_id; share, of the image's pixels; windows, how many the target touches;
    context_windows, the steps between windows from the target to the landmark, a diagonal one step, 0 where one window
    holds a part of both; context_distance, from centre to centre in sides of a window. The last two are empty for a
    sentence without a landmark.
    """
    rows = []
    for row in index.to_dict("records"):
        target = decode_mask(row)
        boxed = box(target)
        touched = touched_windows(boxed, window)
        for sent_id in row["sent_ids"]:
            label = {
                "dataset": row["dataset"],
                "split": row["split"],
                "ref_id": row["ref_id"],
                "sent_id": sent_id,
                "share": float(target.mean()),
                "windows": len(touched),
                "context_windows": np.nan,
                "context_distance": np.nan,
            }
            if (row["ref_id"], sent_id) in landmarks:
                other = box(landmarks[row["ref_id"], sent_id].astype(np.uint8))
                away = np.abs(touched[:, None] - touched_windows(other, window)[None]).max(axis=2)
                label["context_windows"] = float(away.min())
                label["context_distance"] = float(np.linalg.norm(_centre(boxed) - _centre(other)) / window)
            rows.append(label)
    return pd.DataFrame(rows)


def touched_windows(boxed: NDArray[np.floating], window: int) -> NDArray[np.intp]:
    """Return the windows, (n, 2) rows and columns, that hold a pixel of a letterboxed mask (S, S) in [0, 1].

    The threshold is 0.5, as in `wimfris.model.loss.window_targets`; `window` is a window's side in pixels.
    """
    rows, columns = np.nonzero(boxed > 0.5)
    return np.unique(np.stack([rows // window, columns // window], axis=1), axis=0)


def _centre(boxed: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.argwhere(boxed > 0.5).mean(axis=0)


def landmark(world: World, description: Description) -> int | None:
    """Return the number of the thing that the description relates its target to; None without a relation."""
    return world.matching(description.landmark).bit_length() - 1 if description.relation else None


def scene_landmarks(
    index: pd.DataFrame, counts: Mapping[str, int], size: int
) -> dict[tuple[int, int], NDArray[np.bool_]]:
    """Return (ref_id, sent_id) -> mask (H, W) of the landmark, for the relations in these rows of the built-in index.

    The scenes are drawn again: image ids number them from 1 in the order of `SPLITS_WRITTEN`, `counts` of them in each
    split; `size` is the images' side. Raises UserError where the index and a scene have other sentences.
    """
    before = {split: sum(counts[other] for other in SPLITS_WRITTEN[:k]) for k, split in enumerate(SPLITS_WRITTEN)}
    masks = {}
    for _, objects in index.groupby("image_id"):
        split, image_id = str(objects["split"].iloc[0]), int(objects["image_id"].iloc[0])
        scene = draw_scene(split, image_id - before[split] - 1, size)
        world = World(scene.things, size / CANVAS)
        described = [sentence for _, sentences in scene.refs for sentence in sentences]
        written = [
            (row["ref_id"], sent_id, text)
            for row in objects.sort_values("ref_id").to_dict("records")
            for sent_id, text in zip(row["sent_ids"], row["sentences"], strict=True)
        ]
        if [text for _, text in described] != [text for *_, text in written]:
            raise UserError(
                f"image {image_id} ({split}): its sentences are not those of its scene; draw the set again: "
                "`dvc repro data`"
            )
        for (description, _), (ref_id, sent_id, _) in zip(described, written, strict=True):
            thing = landmark(world, description)
            if thing is not None:
                masks[ref_id, sent_id] = scene.masks[thing]
    return masks
