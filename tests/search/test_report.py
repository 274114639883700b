"""The report of a search: its tables and its figure; the promotion of a trial to a variant; the command line."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

from wimfris.cli.search import main
from wimfris.errors import UserError
from wimfris.results.formats import csv_text, latex_text, markdown_text
from wimfris.results.report.tables import METRICS
from wimfris.search import figure, report
from wimfris.search.promote import promote, promoted
from wimfris.settings.params import read_params

ROOT = Path(__file__).parents[2]


def metrics(miou: float) -> dict[str, Any]:
    return {
        split: {"n": 10} | dict.fromkeys(METRICS, miou - less)
        for split, less in (("val", 0), ("testA", 0.02), ("testB", 0.04))
    }


def trial(number: int, miou: float | None, overrides: dict[str, Any], **more: Any) -> dict[str, Any]:
    content = {
        "number": number,
        "name": f"window_tpe_{number:04d}",
        "state": "complete" if miou is not None else "pruned",
        "values": None if miou is None else [miou],
        "epochs": {"1": 0.1} | ({} if miou is None else {"2": miou}),
        "drawn": {},
        "overrides": overrides,
        "adapters": 10,
        "trained": 1000 + number,
        "latency_ms": None,
        "failure": None,
        "same_as": None,
        "metrics": {} if miou is None else metrics(miou),
        "seconds": 100.0 if miou is not None else 40.0,
    }
    return content | more


def evidence(trials: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "space": "window",
        "sampler": "tpe",
        "against": None,
        "dataset": "scenes",
        "scale": "tiny",
        "protocol": "cris",
        "seed": 100,
        "key": "0",
        "declared": {},
        "train": {"epochs": 2, "epoch_steps": 3},
        "reference": {"metrics": metrics(0.5), "trained": 1000, "adapters": 10, "seconds": 100.0},
        "trials": trials,
        "importances": {"model.hmf.window": 0.75, "train.learning_rate": 0.25},
        "code": {"commit": "0123456789", "dirty": False},
        "device": "a machine",
    } | more


def window(size: Any, rate: float = 0.003, layers: tuple[int, ...] = (1, 3)) -> dict[str, Any]:
    return {
        "model": {"hmf": {"window": size}, "msa": {"layers": list(layers)}},
        "train": {"learning_rate": rate},
    }


SEARCH = evidence(
    [
        trial(0, 0.30, window("grid", 3e-5)),
        trial(1, 0.55, window(2, layers=(2,))),
        trial(2, None, window(4)),
        trial(3, 0.55, window(2, layers=(2,)), same_as="window_tpe_0001", seconds=0.1),
        trial(4, None, window(8), state="fail", failure="the loss is nan", epochs={}, seconds=20.0),
    ]
)


def cells(sections: list[Any], title: str) -> pd.DataFrame:
    return next(section.cells for section in sections if section.title.startswith(title))


def test_tables() -> None:
    shown = report.report_sections([SEARCH])
    best = cells(shown, "Best trials")
    assert list(best["trial"]) == ["full (reference)", "window_tpe_0001"], "the first of equals"
    assert list(best["mIoU"]) == ["50.0", "55.0"] and list(best["testB mIoU"]) == ["46.0", "51.0"]
    assert best["settings"][1] == "window 2, layers 2, learning_rate 0.003"
    gains = cells(shown, "Selected on val").iloc[0]
    assert (gains["gain on val"], gains["gain on testA"], gains["optimism"]) == ("+5.0", "+5.0", "+0.0")
    cost = cells(shown, "Cost of the searches").iloc[0]
    assert (cost["drawn"], cost["finished"], cost["pruned"], cost["failed"], cost["repeated"]) == (
        "5",
        "2",
        "1",
        "1",
        "1",
    )
    assert cost["seconds"] == "260" and cost["saved by pruning"] == "40 (13%)" and cost["median of finished"] == "100"
    shares = cells(shown, "Importances")
    assert list(shares["setting"]) == ["model.hmf.window", "train.learning_rate"] and list(shares["TPE"]) == [
        "0.75",
        "0.25",
    ]
    trials = cells(shown, "All trials")
    assert list(trials["mIoU"]) == ["30.0", "55.0", "10.0", "55.0", "–"]
    results = list(trials["result"])
    assert results[1:] == [
        "finished",
        "pruned after epoch 1",
        "as window_tpe_0001",
        "failed: the loss is nan",
    ]
    frame = report.trials_frame([SEARCH])
    assert frame["name"][0] == "reference" and frame["val_miou"][2] == 0.55 and len(frame) == 6
    for text in (markdown_text("Search", shown), latex_text(shown), csv_text(frame)):
        assert "window" in text


def test_front() -> None:
    pairs = ((0.3, 100), (0.5, 200), (0.4, 300), (0.5, 250), (0.6, 900))
    trials = [
        trial(k, score, window(2**k), values=[score, cost], trained=cost) for k, (score, cost) in enumerate(pairs)
    ]
    search = evidence(trials, against="parameters")
    assert [trial["number"] for trial in report.front(search)] == [0, 1, 4]
    assert list(cells(report.report_sections([search]), "Front")["trained parameters"]) == ["100", "200", "900"]


@pytest.mark.slow
@pytest.mark.parametrize("two_objectives", [False, True])
def test_figure(tmp_path: Path, two_objectives: bool) -> None:
    random = evidence(SEARCH["trials"], sampler="random", importances={})
    searches = [SEARCH, random]
    if two_objectives:
        pairs = [trial(k, 0.1 * k, window(k + 1), values=[0.1 * k, 100.0 * k]) for k in range(3)]
        searches = [evidence(pairs, against="latency")]
    figure.draw(searches, tmp_path / "one.png")
    figure.draw(searches, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width > 1000


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    folder = Path("reports/search/scenes-tiny")
    folder.mkdir(parents=True)
    (folder / "window-tpe.json").write_text(json.dumps(SEARCH))
    return tmp_path


def test_a_trial_becomes_a_variant(project: Path) -> None:
    before = Path("params.yaml").read_text()
    params = promote("window_tpe_0001", "best")
    after = Path("params.yaml").read_text()
    assert (
        yaml.safe_load(after)["scales"]["tiny"]["variants"]["best"] == window(2, layers=(2,)) == params.extended["best"]
    )
    assert "best" not in params.at_scale("small").extended, "a setting that suits one scale says nothing of another"
    [added] = set(after.splitlines()) - set(before.splitlines())
    assert after.replace(added + "\n", "") == before and added.endswith("# promoted from trial window_tpe_0001")
    assert params.settings("best").train.epochs == params.settings().train.epochs, "trained whole"
    assert promoted(params, [SEARCH]) == {"best": "window_tpe_0001"}
    promote("window_tpe_0000", "again")
    assert list(yaml.safe_load(Path("params.yaml").read_text())["scales"]["tiny"]["variants"])[-2:] == ["best", "again"]


def test_a_trial_becomes_the_first_variant_of_a_scale(project: Path) -> None:
    """Of a scale at the end of a file without a last newline; a mapping in one line is left to the user."""
    path = Path("params.yaml")
    content = yaml.safe_load(path.read_text())
    own = content["scales"]["tiny"].pop("variants")
    scales = content.pop("scales")
    content["scales"] = {name: scales[name] for name in sorted(scales, key=lambda name: name == "tiny")}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=False).rstrip()
    assert own and not text.endswith("\n")
    path.write_text(text)
    params = promote("window_tpe_0001", "best")
    assert params.extended["best"] == window(2, layers=(2,))
    path.write_text(f"{text}\n    variants: {{}}\n")
    with pytest.raises(UserError, match=r"scales.tiny.variants has no variant on a line of its own"):
        promote("window_tpe_0001", "best")


@pytest.mark.parametrize(
    ("trial", "name", "message"),
    [
        ("window_tpe_0009", "best", "no such trial in .*, for example window_tpe_0000"),
        ("window_tpe_0002", "best", "pruned; only a finished trial can be promoted"),
        ("window_tpe_0001", "full", "--as full: params.yaml has a variant of this name"),
        ("window_tpe_0001", "a b", "--as a b: use only letters, digits"),
    ],
)
def test_a_trial_that_cannot_be_promoted(project: Path, trial: str, name: str, message: str) -> None:
    before = Path("params.yaml").read_text()
    with pytest.raises(UserError, match=message):
        promote(trial, name)
    assert Path("params.yaml").read_text() == before


def test_settings_of_another_variant_are_not_promoted(project: Path) -> None:
    trials = [trial(0, 0.5, {"model": {"hmf": {"window": 2}}})]
    Path("reports/search/scenes-tiny/window-tpe.json").write_text(json.dumps(evidence(trials)))
    before = Path("params.yaml").read_text()
    with pytest.raises(UserError, match="window_2 and best have equal settings"):
        promote("window_tpe_0000", "best")
    assert Path("params.yaml").read_text() == before


def test_a_core_variant_with_the_settings_of_a_trial_counts_as_promoted() -> None:
    """Whatever the wording of the settings: `window_1` leaves the alignment's window at its default."""
    params = read_params(ROOT / "params.yaml")
    wording = {"model": {"hmf": {"window": 1}}, "loss": {"align_window": "scan"}}
    trials = [trial(0, 0.5, {}), trial(1, 0.6, wording), trial(2, None, {"model": {"hmf": {"window": 2}}})]
    trials.append(trial(3, 0.5, {"model": {"hmf": {"wide": 1}}}))  # settings that an earlier params.yaml allowed
    assert promoted(params, [evidence(trials)]) == {"window_1": "window_tpe_0001"}


def test_confirmed_beside_full(project: Path) -> None:
    rows = []
    for variant, hit in (("full", 50), ("best", 60)):
        for seed in (0, 1):
            rows += [
                {
                    "run": f"{variant}-{seed}",
                    "variant": variant,
                    "seed": seed,
                    "dataset": "scenes",
                    "scale": "tiny",
                    "protocol": "cris",
                    "split": split,
                    "condition": "sentence",
                    "ref_id": k,
                    "sent_id": k,
                    "image_id": k,
                    "sentence": "the red one",
                    "kind": "",
                    "target_area": 100,
                    "intersection": hit + (k * 7 + seed) % 11,
                    "union": 100,
                }
                for split in ("val", "testA")
                for k in range(20)
            ]
    records = pd.DataFrame(rows)
    [on_val, *_] = report.confirmed_sections([SEARCH], {"best": "window_tpe_0001"}, records)
    assert "best (window_tpe_0001, TPE)" in on_val.cells.to_string()
    assert report.confirmed_sections([SEARCH], {}, records) == []
    assert report.confirmed_sections([SEARCH], {"best": "window_tpe_0001"}, pd.DataFrame()) == []


def test_invalid_evidence(project: Path) -> None:
    with pytest.raises(UserError, match="no search of space loss; run"):
        report.read_searches("scenes-tiny", "loss")
    Path("reports/search/scenes-tiny/window-random.json").write_text("{")
    for garbled in ("{", "[]", "{}"):
        Path("reports/search/scenes-tiny/window-random.json").write_text(garbled)
        with pytest.raises(UserError, match=r"window-random\.json: not the evidence of a search"):
            report.read_searches("scenes-tiny", "window")
    with pytest.raises(UserError, match=r"window-random\.json: not the evidence of a search"):
        promote("window_tpe_0001", "best")


def test_command_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("reports/records").mkdir()

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        return int(exit_.value.code or 0)

    assert run("--no-train") == 0
    assert "window_tpe_0001" in capsys.readouterr().out
    assert list(Path("reports").rglob("search-window.*")) == [], "looking writes nothing"
    assert run("--dry-run", "--trials", "7", "--jobs", "2") == 0
    output = capsys.readouterr().out
    assert "model.hmf.window: choice, 1, 2, 4, 8, grid" in output and "7 trials, 2 at a time" in output
    assert "about 6 min 40 s, at 100 s a trial" in output
    assert run("--space", "none") == 2 and run("--no-train", "--space", "loss") == 2
    assert all(line.startswith("wimfris: ") for line in capsys.readouterr().err.splitlines())
    assert read_params().search["space"] == "window"
