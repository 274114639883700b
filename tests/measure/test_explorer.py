"""The explorer's data: aligned with the records, checked against the masks, and complete without masks."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wimfris.data.index import decode_mask, read_index
from wimfris.data.rle import decode_rle, encode_mask
from wimfris.errors import UserError
from wimfris.measure.explorer import ELSEWHERE, FEW, STUB, explorer_data, explorer_page, write_explorer
from wimfris.measure.ingest import ingest
from wimfris.metrics import ious
from wimfris.results.evidence import EvidenceFiles, read_evidence, write_core
from wimfris.results.scores import own_sentences
from wimfris.runs.records import OBJECT_COLUMNS, read_records, write_records
from wimfris.settings.sections import SCENES

pytestmark = pytest.mark.slow
CORE = EvidenceFiles("scenes-smoke", added=False)


@pytest.fixture
def own(trained_folder: Path, project: Any, committed: Path) -> Any:
    """A project with the evidence of full-0, and of a system whose masks are the upper halves of the images."""
    shutil.copytree(trained_folder / "runs", project.folder / "runs", dirs_exist_ok=True)
    project.edit(variants={"full": {}}, controls={}, seeds=[0], extra_seeds={})
    (project.folder / "reports").mkdir()
    shutil.copy(committed / "reports" / "claims.yaml", project.folder / "reports")
    write_core(project.params())
    lines = []
    for row in read_index(project.runs / "index" / "index.parquet").to_dict("records"):
        half = np.arange(row["height"])[:, None] < np.full((1, row["width"]), row["height"] // 2)
        mask = {"size": [row["height"], row["width"]], "counts": encode_mask(half)}
        lines += [{"ref_id": row["ref_id"], "sent_id": one, "segmentation": mask} for one in row["sent_ids"]]
        if row["split"] not in ("val", "testA", "testB"):
            lines = lines[: len(lines) - len(row["sent_ids"])]
    Path("half.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ingest(project.params(), "half", Path("half.jsonl"))
    return project


def test_data_are_those_of_the_records_and_the_masks(own: Any) -> None:
    data = explorer_data(own.params())
    assert [(one["name"], one["run"]) for one in data["systems"]] == [("full", "full-0"), ("half", "half")]
    sentences = data["sentences"]
    count = len(sentences["split"])
    records = own_sentences(read_evidence(own.params()).records)
    assert count == len(records) and {len(column) for column in sentences.values()} == {count}
    full, half = data["systems"]
    expected = ious(records["intersection"], records["union"]).mean()
    assert np.mean(full["iou"]) / data["unit"] == pytest.approx(expected, abs=1e-4)
    assert full["right"] is not None and np.mean(full["right"]) == pytest.approx(records["right_object"].mean())
    val = sentences["split"].count("val")
    assert sentences["split"][:val] == ["val"] * val and len(full["masks"]) == len(half["masks"]) == val
    for system in (full, half):
        for number in range(val):
            picture, height, width, target = data["targets"][sentences["target"][number]]
            assert picture == sentences["image"][number] < len(data["pictures"])
            mask, truth = (decode_rle(rle, height, width) for rle in (system["masks"][number], target))
            iou = (mask & truth).sum() / max((mask | truth).sum(), 1)
            assert system["iou"][number] == round(data["unit"] * iou)
    assert set(sentences["kind"]) <= {0, 1, 2} and set(sentences["distractors"]) <= {0, 1, 2}
    index = read_index(own.runs / "index" / "index.parquet")
    texts = dict(zip(index.explode("sent_ids")["sent_ids"], index.explode("sentences")["sentences"], strict=True))
    ordered = index[index["split"] == "val"].sort_values("ref_id").explode("sent_ids")["sent_ids"]
    assert sentences["text"][:val] == [texts[one] for one in ordered]


def test_a_mask_of_another_prediction_is_refused(own: Any) -> None:
    masks = pd.read_parquet(CORE.masks)
    row = read_index(own.runs / "index" / "index.parquet").query("split == 'val'").iloc[0]
    masks.loc[masks["ref_id"] == row["ref_id"], "rle"] = encode_mask(~decode_mask(row).astype(bool))
    masks.to_parquet(CORE.masks)
    with pytest.raises(UserError, match=r"the mask of full-0 for sentence \d+ does not give its record;"):
        explorer_data(own.params())


def test_evidence_without_masks_and_objects_is_shown(own: Any) -> None:
    CORE.masks.unlink()
    records = read_records(CORE.records).drop(columns=list(OBJECT_COLUMNS))
    write_records(records, CORE.records)
    full, half = explorer_data(own.params())["systems"]
    assert full["masks"] is None and full["right"] is None and min(full["iou"]) >= 0
    assert half["masks"] and half["right"]


def test_only_images_of_kept_masks_have_pictures(own: Any) -> None:
    index = read_index(own.runs / "index" / "index.parquet").query("split == 'val'").sort_values("ref_id")
    first = index[index["file_name"].isin(index["file_name"].unique()[:2])]
    for part in (CORE, EvidenceFiles("scenes-smoke", added=True)):
        masks = pd.read_parquet(part.masks)
        masks[masks["ref_id"].isin(first["ref_id"])].to_parquet(part.masks)
    data = explorer_data(own.params())
    assert len(data["pictures"]) == 2 and len(data["targets"]) == len(first)
    for system in data["systems"]:
        assert len(system["masks"]) == first["sent_ids"].str.len().sum() < len(system["iou"])


def test_the_page_holds_all_it_needs(own: Any) -> None:
    path = write_explorer(own.params())
    page = path.read_text(encoding="utf-8")
    assert path == Path("reports/explorer.html") and 'href="index.html"' in page
    assert "{{" not in page and not re.search(r"(src|href)=\"(https?:)?//", page)
    assert write_explorer(own.params(), report=False) == Path("runs/scenes-smoke/explorer.html")
    assert path.read_text(encoding="utf-8") == explorer_page(explorer_data(own.params()), "index.html")
    data = {"title": "a </script> {{DATA}}"}
    assert explorer_page(data, "index.html").count("</script>") == 2


def test_images_of_other_data_sets_are_not_shipped(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wimfris.measure.explorer.SCENES", f"not {SCENES}")
    path = write_explorer(own.params())
    assert path == Path("runs/scenes-smoke/explorer.html")
    assert Path("reports/explorer.html").read_text() == STUB.format(ELSEWHERE.format(name="scenes-smoke", path=path))


def test_one_system_cannot_be_compared(own: Any) -> None:
    EvidenceFiles("scenes-smoke", added=True).records.unlink()
    with pytest.raises(UserError, match="holds 1 of the systems of `explorer`") as error:
        write_explorer(own.params(), report=False)
    assert "\n" not in str(error.value)
    assert write_explorer(own.params()).read_text() == STUB.format(FEW), "the pipeline goes on"
