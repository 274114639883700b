"""Stage `prepare`: check annotations and images, and write the index of the data set in use and its audit."""

import pandas as pd

from wimfris.data.audit import audit, by_dataset, shared_images_note
from wimfris.data.counts import check_object_counts
from wimfris.data.index import write_index
from wimfris.data.mixed import count_shared, drop_shared, summary
from wimfris.data.refer import ReferredObject, read_refer
from wimfris.data.sentences import vocabulary
from wimfris.data.source import sources
from wimfris.data.tokens import WordTokenizer
from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.settings.schema import Settings
from wimfris.settings.sections import SCENES


def prepare_index(settings: Settings) -> tuple[pd.DataFrame, list[str]]:
    """Write index.parquet, images.parquet, objects.parquet and audit.md of the data set in use, and for mixed data
    mixed.csv.

    Returns the index and notes: images that training shares with val or test, annotations that are left out, and masks
    without a pixel. Raises UserError if annotations or images are missing or damaged, if the object counts are not the
    declared ones, if a split has no object, or if a sentence has a word that a built-in text encoder does not know.
    """
    data, folder = settings.data, settings.folder / "index"
    objects: list[ReferredObject] = []
    notes: list[str] = []
    for source in sources(settings):
        own = read_refer(source, notes)
        if source.name != SCENES:
            check_object_counts(own, source, data.files[source.name].counts)
        objects += own
        images = source.images
    _check_splits(objects, settings)
    _check_words(objects, settings)
    if data.mix:
        counts = count_shared(objects)
        index = write_index(drop_shared(objects) if data.drop_shared else objects, images, folder)
        counts.to_csv(folder / "mixed.csv", index=False)
        notes.insert(0, summary(counts, strict=data.drop_shared))
    else:
        index = write_index(objects, images, folder)
        shared = shared_images_note(index)
        notes = [shared, *notes] if shared else notes
    write_text(folder / "audit.md", audit(by_dataset(index), "\n\n".join(notes)))
    return index, notes


def _check_splits(objects: list[ReferredObject], settings: Settings) -> None:
    """Raise UserError if a declared split has no object."""
    present = {referred.split for referred in objects}
    for split in ("train", *settings.data.splits):
        if split not in present:
            raise UserError(
                f"{settings.data.name}: no reference has the split {split} (they have {', '.join(sorted(present))}); "
                f"correct the splits in the references, or datasets.{settings.data.name}.splits in params.yaml"
            )


def _check_words(objects: list[ReferredObject], settings: Settings) -> None:
    """Raise UserError for a word that the built-in or random text encoder does not know. Published ones know all."""
    if settings.encoders.text.is_public:
        return
    tokenizer = WordTokenizer(vocabulary(), settings.data.length)
    try:
        for text in dict.fromkeys(sentence.text for referred in objects for sentence in referred.sentences):
            tokenizer.encode(text)
    except UserError as error:
        raise UserError(
            f"{settings.data.name}: natural language needs a published text encoder, such as CLIP in scales base and "
            f"large; set `scale`, or "
            f"scales.{settings.scale}.encoders.text.source ({error})"
        ) from None
