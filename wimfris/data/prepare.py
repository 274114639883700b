"""Stage `prepare`: check annotations and images, and write the index of the data set in use and its audit."""

import pandas as pd

from wimfris.data.audit import audit, by_dataset, shared_images_note
from wimfris.data.counts import check_object_counts
from wimfris.data.index import write_index
from wimfris.data.mixed import count_shared, drop_shared, summary
from wimfris.data.refer import ReferredObject, read_refer
from wimfris.data.source import source_root
from wimfris.settings.schema import Settings


def prepare_index(settings: Settings) -> tuple[pd.DataFrame, str]:
    """Write index.parquet, images.parquet and audit.md of the data set in use, and mixed.csv for mixed data.

    Returns the index and a note, "" if training shares no image with val or test. Raises UserError if annotations or
    images are missing or damaged, or if the object counts are not the published ones.
    """
    data, root, folder = settings.data, source_root(settings), settings.folder / "index"
    objects: list[ReferredObject] = []
    for name in data.sets:
        own = read_refer(root, name)
        check_object_counts(own, name)
        objects += own
    if data.is_mixed:
        strict = data.name == "mixed_strict"
        counts = count_shared(objects)
        index = write_index(drop_shared(objects) if strict else objects, root, folder)
        counts.to_csv(folder / "mixed.csv", index=False)
        note = summary(counts, strict=strict)
    else:
        index = write_index(objects, root, folder)
        note = shared_images_note(index)
    (folder / "audit.md").write_text(audit(by_dataset(index), note))
    return index, note
