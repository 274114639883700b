"""The studies that compare variants: each can be imported, and names what params.yaml and published.csv hold."""

import importlib.util
from pathlib import Path

import pytest

from wimfris.metrics import ious
from wimfris.results.comparison import Study
from wimfris.results.evidence import read_evidence
from wimfris.results.formats import DASH
from wimfris.results.published import read_published
from wimfris.search.promote import promoted
from wimfris.search.report import load_evidence
from wimfris.settings.params import read_params

ROOT = Path(__file__).parents[2]
NAMES = (
    "comparison",
    "components",
    "core",
    "emphasis",
    "fusion",
    "losses",
    "neck",
    "placement",
    "rfmixer",
    "rivals",
    "window_size",
)


def study(name: str) -> Study:
    spec = importlib.util.spec_from_file_location(f"study_{name}", ROOT / "studies" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__ and f"python studies/{name}.py" in module.__doc__
    return module.STUDY


@pytest.mark.parametrize("name", NAMES)
def test_a_study_names_what_exists(name: str) -> None:
    declared, params = study(name), read_params(ROOT / "params.yaml")
    published = read_published(ROOT / "reports/published.csv")
    assert declared.name == name and declared.baseline == "full" and declared.question and declared.paper
    assert set(declared.variants) <= params.variants.keys() | params.beyond.keys()
    for variant in declared.at(params).variants:
        params.settings(variant)
    keys = {key[:3] for key in published}
    for family in (declared, *declared.further):
        for row in (*family.rows, *(row.against for row in family.rows if row.against)):
            assert row.published is None or (row.published[0], row.system, row.published[1]) in keys, row
        assert len({(row.block, row.label) for row in family.rows}) == len(family.rows)


def test_every_variant_is_in_a_study_or_promoted_from_a_search(committed: Path) -> None:
    params = read_params(committed / "params.yaml")
    used = {variant for name in NAMES for variant in study(name).variants}
    searches = [load_evidence(path) for path in (committed / "reports" / "search").glob("*/*.json")]
    assert used | promoted(params, searches).keys() == params.variants.keys() | params.extended.keys()


def test_the_encoders_are_compared_at_their_own_scale() -> None:
    """Every row has a grid of 32 x 32, and one side of the encoders changes at a time, but for the last row."""
    encoders, params = study("encoders"), read_params(ROOT / "params.yaml")
    assert encoders.scales == ("base",) and not encoders.is_at(params.scale)
    base = params.at_scale("base")
    own = base.extended.keys() - params.extended.keys()
    assert {"full", *own} == set(encoders.variants)
    full = base.settings()
    for variant in own:
        settings = base.settings(variant)
        assert settings.own_encoders and settings.grid == 32
        assert settings.encoders_record == settings.folder / "encoders" / f"{variant}.json"
        changed = {
            name for name in ("text", "vision") if getattr(settings.encoders, name) != getattr(full.encoders, name)
        }
        assert variant == "both_siglip2" or changed == {variant.split("_")[0]}
        assert (settings.model, settings.loss, settings.train) == (full.model, full.loss, full.train)
    assert not full.own_encoders and full.encoders_record == full.folder / "encoders.json"


def test_table_2_has_the_named_systems_of_a_data_set_with_more(committed: Path) -> None:
    records = read_evidence(read_params(committed / "params.yaml"), committed / "reports").records
    ours = records[records["variant"].isin(["full", "none"])]
    section = study("comparison").extra(
        ours.assign(dataset="refcoco", scale="base"), read_published(committed / "reports" / "published.csv")
    )
    cells = section.cells.set_index(["system", "figures"])["refcoco val"]
    full = ours[(ours["variant"] == "full") & (ours["split"] == "val") & (ours["condition"] == "sentence")]
    miou = 100 * ious(full["intersection"], full["union"]).mean()
    assert cells["WIMFRIS-B", "ours"].startswith(f"{miou:.1f} / ") and cells["DETRIS-B", "ours"] == DASH


def test_windows_as_large_as_the_grid_are_left_out() -> None:
    windows, params = study("window_size"), read_params(ROOT / "params.yaml")
    tiny = windows.at(params.at_scale("tiny"))
    assert "window_8" not in tiny.variants and "8x8" in tiny.note
    small = windows.at(params.at_scale("small"))
    assert [row.label for row in small.rows][:4] == ["2x2", "4x4 (full)", "8x8", "no window"]


def test_rows_of_equal_settings_point_to_one_run() -> None:
    def variants(name: str) -> dict[tuple[str, str], str]:
        return {(row.block, row.label): row.variant for row in study(name).rows}

    assert variants("rfmixer")["kernels of RFMixer", "3-5-7 (full)"] == "full"
    assert variants("placement")["", "spread (full)"] == "full"
    assert variants("neck")["WIMFRIS's adapters", "HMF"] == "full"
    assert variants("neck")["WIMFRIS's adapters", "no neck"] == "no_neck"
    assert variants("rivals")["frozen and fine-tuned", "frozen"] == "none"


def test_the_families_of_fusion_are_corrected_apart() -> None:
    """Rows past the paper, from one seed, change no comparison of the others."""
    fusion = study("fusion")
    (past,) = fusion.further
    assert {row.variant for row in fusion.rows} & {row.variant for row in past.rows} == {"full"}
    assert set(past.variants) < set(fusion.variants) and "smoke test" in past.title


def test_the_core_study_has_every_core_variant(committed: Path) -> None:
    assert set(study("core").variants) == set(read_params(committed / "params.yaml").variants)
