"""Mixed training data: several data sets together, and the images that their splits share.

RefCOCO, RefCOCO+ and RefCOCOg use the same COCO images and were split independently, so one set's train split holds
images of another's val and test splits. With `drop_shared` those objects are dropped from training. Without it they
stay, as in published mixed training, and results are labelled as leaking. The val and test splits of each set stay.
"""

from collections.abc import Sequence

import pandas as pd

from wimfris.data.refer import ReferredObject
from wimfris.settings.sections import Data


def dataset_label(data: Data, dataset: str) -> str:
    """Return how records name one of `data.sets`: by its name, after mixed training with how the sets were mixed."""
    return f"{dataset} ({data.name}{'' if data.drop_shared else ': leaking'})" if data.mix else dataset


def drop_shared(objects: Sequence[ReferredObject]) -> list[ReferredObject]:
    """Return the objects without the training objects whose image is in a val or test split of any set."""
    held_out = _held_out_images(objects)
    return [referred for referred in objects if not _is_shared(referred, held_out)]


def count_shared(objects: Sequence[ReferredObject]) -> pd.DataFrame:
    """Count the training images and objects of each set, and how many of them lie in held-out images.

    Columns: dataset, images, objects, shared_images, shared_objects. The last row, "all", counts the sets together.
    """
    held_out = _held_out_images(objects)
    train = pd.DataFrame(
        [(o.dataset, o.image_id, _is_shared(o, held_out)) for o in objects if o.split == "train"],
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


def summary(counts: pd.DataFrame, *, strict: bool) -> str:
    """Return the counts of `count_shared` as one paragraph of Markdown."""
    total = counts.iloc[-1]
    sets = "; ".join(
        f"{row['dataset']}: {row['shared_images']} images, {row['shared_objects']} objects"
        for row in counts.iloc[:-1].to_dict("records")
    )
    use = "left out of training" if strict else "**trained on, as published: results on val and test are leaking**"
    return (
        f"{total['shared_images']} of {total['images']} training images "
        f"({total['shared_objects']} of {total['objects']} objects) are also in the val or test split of one of the "
        f"sets: {use} ({sets})."
    )


def _held_out_images(objects: Sequence[ReferredObject]) -> set[str]:
    """Return the files of the images in any set's val or test split. Ids of different sets may name other images."""
    return {referred.file_name for referred in objects if referred.split != "train"}


def _is_shared(referred: ReferredObject, held_out: set[str]) -> bool:
    return referred.split == "train" and referred.file_name in held_out
