"""Mixed training data: RefCOCO, RefCOCO+ and RefCOCOg (umd) together, with the images that their splits share.

The three sets are drawn from the same COCO images, and each was split on its own: one set's train split holds images of
another's val and test splits. `mixed_strict` leaves those images out of every train split; `mixed_as_published` keeps
them, as published mixed training does, and its results are called leaking. Val and test splits are the sets' own.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from wimfris.data import refer
from wimfris.data.index import check_published_counts, write_prepared
from wimfris.settings.schema import Data

COUNTS = "mixed.csv"  # in the folder of the index


def prepare_mixed(
    root: Path, sets: Sequence[str], folder: Path, *, strict: bool, check_counts: bool = True
) -> pd.DataFrame:
    """As `wimfris.data.index.prepare` does, of several sets under `root`: one index, whose column `dataset` tells them
    apart, and `folder`/mixed.csv, how many training images and objects are left out, or would have to be.

    Raises UserError where annotations or images are missing or damaged, or the counts are not the published ones.
    """
    objects: list[refer.ReferredObject] = []
    for name in sets:
        of_set = refer.read_refer(root, name)
        if check_counts:
            check_published_counts(of_set, name)
        objects += of_set
    held_out = held_out_images(objects)
    kept = [found for found in objects if not (strict and leaks(found, held_out))]
    index = write_prepared(kept, root, folder)
    shared_images(objects).to_csv(Path(folder) / COUNTS, index=False)
    return index


def dataset_label(data: Data, dataset: str) -> str:
    """Return how records name one of `data.sets`: by its name, after mixed training with how the sets were mixed."""
    mixing = {"mixed_strict": " (mixed_strict)", "mixed_as_published": " (mixed_as_published: leaking)"}
    return dataset + mixing.get(data.name, "")


def held_out_images(objects: Sequence[refer.ReferredObject]) -> set[int]:
    """The ids of the images that any set's val or test split holds."""
    return {found.image_id for found in objects if found.split != "train"}


def leaks(found: refer.ReferredObject, held_out: set[int]) -> bool:
    """Whether an object is trained on though its image is one of those held out."""
    return found.split == "train" and found.image_id in held_out


def shared_images(objects: Sequence[refer.ReferredObject]) -> pd.DataFrame:
    """Set by set: images and objects of its train split, and how many of each lie in images that are held out (columns
    dataset, images, objects, shared_images, shared_objects); and of all together.
    """
    held_out = held_out_images(objects)
    train = pd.DataFrame(
        [(o.dataset, o.image_id, leaks(o, held_out)) for o in objects if o.split == "train"],
        columns=["dataset", "image_id", "shared"],
    )
    parts = [*train.groupby("dataset", sort=False), ("all", train)]
    return pd.DataFrame(
        [
            {
                "dataset": name,
                "images": part["image_id"].nunique(),
                "objects": len(part),
                "shared_images": part.loc[part["shared"], "image_id"].nunique(),
                "shared_objects": int(part["shared"].sum()),
            }
            for name, part in parts
        ]
    )


def told(counts: pd.DataFrame, *, strict: bool) -> str:
    """The counts of `shared_images` as one paragraph of Markdown."""
    row = counts.iloc[-1]
    what = (
        f"{row['shared_images']} of {row['images']} training images "
        f"({row['shared_objects']} of {row['objects']} objects) are also in the val or test split of one of the sets"
    )
    sets = "; ".join(
        f"{row['dataset']}: {row['shared_images']} images, {row['shared_objects']} objects"
        for row in counts.iloc[:-1].to_dict("records")
    )
    fate = "left out of training" if strict else "**trained on, as published: results on val and test are leaking**"
    return f"{what}: {fate} ({sets})."
