"""Every command of README.md, CONTRIBUTING.md and docs/ exists, and runs where it can.

A command stands in one of four tables: run in this process at scale smoke, run with `--dry-run`, run by a shell in a
clone at scale smoke (marked long), or only checked, with the reason.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.results.studies import load_study
from wimfris.settings.params import read_params

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^ *```(\w+)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:wimfris|make|dvc|python) [^`<]+)`")
VERBS: Any = typer.main.get_command(app)

# --- the tables -------------------------------------------------------------------------------------------------------

# Command -> the exit codes that are right at scale smoke without the official files and a GPU.
IN_PROCESS = {
    'wimfris predict --image photo.png --text "the red circle"': {0},
    "wimfris export full-0 --out exported --encoders": {0},
    'wimfris predict --model exported --image photo.png --text "the red circle"': {0},
    "wimfris data audit": {0},
    "wimfris data check --data all": {1},
    "wimfris ceiling": {0},
    "wimfris clean": {0},
    "wimfris doctor --scale base": {1},
    "wimfris gather --variants full": {0},
    "wimfris matrix --dry-run": {0},
    "wimfris evaluate --run full-0 --out cris.parquet": {0},
    "wimfris evaluate --run full-0 --protocol lavt --out lavt.parquet": {0},
    "wimfris evaluate --run full-0 --protocol remamber --out remamber.parquet": {0},
}

DRY = {
    "wimfris matrix --jobs 8",
    "wimfris matrix --launcher slurm --jobs 8 --slurm partition=gpu --slurm gpus_per_node=1 --slurm mem_gb=48 "
    "--slurm timeout_min=720",
    "python studies/window_size.py --dry-run",
    "python studies/encoders.py --scale base --dry-run",
    "python studies/search.py --dry-run",
    "python studies/tuning.py --dry-run",
    "python studies/search.py --space placement --trials 30",
    "python studies/search.py --space all --against parameters",
    "python studies/search.py --space planted --sampler random",
    "python studies/search.py --space plus --trials 24",
    "python studies/search.py --storage postgresql+psycopg://user@host/name",
}

# In this order, in one clone with two variants and two seeds.
SHELL = (
    "git init",
    "git add -A",
    "git commit -m start",
    "dvc repro prepare",
    "wimfris matrix --jobs 2",
    "dvc repro",
    "wimfris report",
    "wimfris settle",
    "dvc metrics show",
    "dvc plots show",
    "dvc repro train@full-0",
    "dvc push --run-cache",
    "dvc repro --pull data prepare encoders code",
    "dvc repro --pull --single-item train@full-0",
    "dvc fetch --run-cache",
    "dvc repro --pull",
    "wimfris report --variants full",
    "wimfris matrix --variants window_3",
    "wimfris gather --variants window_3",
    "wimfris report --variants full,window_3",
    "python studies/window_three.py --dry-run",
    "python studies/window_three.py",
    'make verify RUNS="full-0 none-1"',
    "python studies/search.py",
    "wimfris promote all_tpe_parameters_0004 --as candidate",
    "wimfris matrix --variants full,candidate",
    "wimfris gather --variants full,candidate",
    "python studies/search.py --space all --no-train",
    "dvc repro studies/dvc.yaml:search",
    "git checkout reports",
    "git checkout params.yaml",
)

_GPU, _NETWORK, _OFFICIAL = "needs a GPU", "needs a network", "needs the official data and a GPU"
_ITSELF = "is this test suite, or a part of CI"
_OWN_DATA = "tests/docs/test_own_data.py runs it"
_INGEST = "tests/docs/test_ingest.py runs it"
CHECKED = {
    "wimfris ingest lavt_released --masks lavt.jsonl --split val": _INGEST,
    "wimfris evaluate --run full-0 --out full.parquet --export-masks full.jsonl": _INGEST,
    "wimfris tables": _INGEST,
    "wimfris explore": _INGEST,
    "wimfris study failure_modes": "needs runs of three variants; tests/studies makes the report",
    "wimfris data check": _OWN_DATA,
    "wimfris data make": _OWN_DATA,
    "wimfris data prepare": _OWN_DATA,
    "wimfris encoders record": _OWN_DATA,
    "wimfris train --run full-0": _OWN_DATA,
    "wimfris evaluate --run full-0 --out shapes.parquet": _OWN_DATA,
    "make demo": "tests/inference runs the verb; the target only adds the install",
    "make repro": "its commands run one by one in the clone",
    "make setup": "installs packages; every CI run does it",
    "make test": _ITSELF,
    "make check": _ITSELF,
    "make lint": _ITSELF,
    "make test-slow": _ITSELF,
    "make docs": "tests/docs/test_site.py builds the site",
    "make gpu": "tests/benchmarks/test_gpu.py runs its smoke form and its order",
    "wimfris demo --serve": "serves until it is stopped",
    "python tests/training/test_golden_smoke.py": "rewrites a committed file",
    ". .venv/bin/activate": "the tests run in an environment",
    "pip install pre-commit": _NETWORK,
    "pre-commit install": _NETWORK,
    "pip install optuna-dashboard": _NETWORK,
    "optuna-dashboard runs/scenes-tiny/search/window-tpe-KEY/journal.log": _NETWORK,
    "pip install -c constraints.txt -e '.[postgres]'": _NETWORK,
    "pip install -c constraints.txt -e '.[slurm]'": _NETWORK,
    "pip install --no-build-isolation -c constraints.txt -e '.[cuda]'": _GPU,
    "pip install ninja packaging setuptools wheel": _NETWORK,
    "export MAMBA_FORCE_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE MAX_JOBS=2": _GPU,
    "python benchmarks/scan.py --device cuda": _GPU,
    "python benchmarks/model.py --device cuda": _GPU,
    "python benchmarks/loader.py --workers 0 4 8 --time-step": "takes minutes and times the machine",
    "torchrun --nproc-per-node 8 -m -- wimfris train --run full-0": _GPU,
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m -- "
    "wimfris train --run full-0": _GPU,
    "torchrun --nproc-per-node 8 -m -- wimfris evaluate --run full-0 --out records.parquet": _GPU,
    "wimfris encoders fetch --scale base": _NETWORK,
    "wimfris encoders fetch --scale base --variant vision_dinov3": _NETWORK,
    "wimfris estimate --scale base --data refcoco --variant vision_dinov3": "takes minutes and times the machine",
    "wimfris evaluate --detris best.pth --out detris.parquet": "needs a released checkpoint",
    "dvc exp run -S scale=base -S data.name=refcoco prepare encoders": _OFFICIAL,
    "dvc exp run -S scale=base -S data.name=refcoco -S +scales.base.train.gradient_checkpointing=true train@full-0": (
        _OFFICIAL
    ),
    "dvc exp run -S scale=large -S data.name=mixed_strict -S 'seeds=[0]' train@full-0": _OFFICIAL,
    "dvc exp run -S scale=base -S data.name=refcoco train@full-0 "
    "-S scales.base.encoders.text.source=weights/ViT-B-16.pt -S scales.base.encoders.text.revision=null "
    "-S scales.base.encoders.vision.source=weights/dinov2_vitb14_reg4_pretrain.pth "
    "-S scales.base.encoders.vision.revision=null": _OFFICIAL,
}

# --- the commands of the pages ----------------------------------------------------------------------------------------


def commands_of(text: str) -> list[str]:
    """Return the commands of a page's shell blocks, without comments; `&&` divides two commands."""
    commands = []
    for language, body in FENCE.findall(text):
        for line in re.sub(r"\\\n\s*", "", body).splitlines() if language == "sh" else ():
            bare = re.sub(r"(^|\s+)#.*", "", line).strip()
            commands += [part.strip() for part in bare.split("&&") if part.strip()]
    return commands


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"))))
MENTIONED = sorted(
    {
        command.strip()
        for page in PAGES
        for text in INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
        for command in text.split("&&")
        if command.strip().partition(" ")[0] in ("wimfris", "make")
    }
)


def test_every_command_is_in_one_table() -> None:
    tables = [*IN_PROCESS, *DRY, *SHELL, *CHECKED]
    assert sorted(tables) == sorted(set(tables)), "a command is in two tables"
    assert sorted(set(COMMANDS) - set(tables)) == [], "add these commands to a table of this file"
    assert sorted(set(tables) - set(COMMANDS)) == [], "no page has these commands: remove them from the tables"


# --- existence --------------------------------------------------------------------------------------------------------


def check_wimfris(words: list[str]) -> None:
    """Parse a command line of `wimfris` without running it."""
    command: Any = VERBS
    while hasattr(command, "commands"):
        assert words, "no verb"
        assert words[0] in command.commands, f"no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


def check_make(words: list[str]) -> None:
    target = words[0]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert target in targets


def check_dvc(words: list[str], tmp_path: Path) -> None:
    """Parse a command line of DVC, and hold its stages and overrides to dvc.yaml and params.yaml."""
    from dvc.cli.parser import get_main_parser

    options = get_main_parser().parse_args(words)
    for target in getattr(options, "targets", None) or ():
        file, _, name = target.rpartition(":")
        stages = yaml.safe_load((ROOT / (file or "dvc.yaml")).read_text())["stages"]
        assert name.partition("@")[0] in stages
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for override in getattr(options, "set_param", None) or ():
        path, _, value = override.partition("=")
        *parents, last = path.removeprefix("+").split(".")
        place = content
        for parent in parents:
            place = place[parent]
        assert last in place or path.startswith("+")
        place[last] = yaml.safe_load(value)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    read_params(tmp_path / "params.yaml").settings("full")


def check_python(words: list[str]) -> None:
    script, options = ROOT / words[0], [word for word in words[1:] if word.startswith("--")]
    if script.stem == "window_three":  # the example of docs/extend.md
        return
    source = script.read_text() + (ROOT / "wimfris" / "cli" / "study.py").read_text()
    source += (ROOT / "wimfris" / "cli" / "search.py").read_text()
    constants = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    assert set(options) <= constants


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if word.startswith(".["):
            assert word[2:-1] in extras
        if word.endswith(".txt"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_exists(command: str, tmp_path: Path) -> None:
    program, *words = shlex.split(command)
    if program == "wimfris":
        check_wimfris(words)
    elif program == "torchrun":
        check_wimfris(words[words.index("wimfris") + 1 :])
    elif program == "make":
        check_make(words)
    elif program == "dvc":
        check_dvc(words, tmp_path)
    elif program == "python":
        check_python(words)
    elif program == "pip":
        check_pip(words)
    else:
        assert program in ("git", ".", "export", "pre-commit", "optuna-dashboard")


@pytest.mark.parametrize("command", MENTIONED)
def test_a_command_in_a_sentence_exists(command: str) -> None:
    """A sentence may name a verb without its arguments."""
    program, *words = shlex.split(command.replace("...", ""))
    if program == "make":
        check_make(words)
        return
    group: Any = VERBS
    while words and hasattr(group, "commands"):
        assert words[0] in group.commands
        group, words = group.commands[words[0]], words[1:]
    known = {name for parameter in group.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


# --- runs in this process ---------------------------------------------------------------------------------------------


def user_folder(source: Path, folder: Path) -> Path:
    """Copy a project folder, and add the studies and a picture."""
    shutil.copytree(source, folder)
    shutil.copytree(ROOT / "studies", folder / "studies", ignore=shutil.ignore_patterns("__pycache__"))
    Image.new("RGB", (64, 48), "red").save(folder / "photo.png")
    return folder


@pytest.fixture
def user(trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project folder with a trained run and a picture, as the working directory."""
    monkeypatch.chdir(user_folder(trained_folder, tmp_path / "project"))


@pytest.fixture
def untrained(smoke_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project folder without runs, as the working directory."""
    monkeypatch.chdir(user_folder(smoke_folder, tmp_path / "project"))


@pytest.mark.parametrize("command", [pytest.param(c, marks=pytest.mark.slow) for c in IN_PROCESS])
@pytest.mark.usefixtures("user")
def test_a_command_runs(command: str) -> None:
    words = shlex.split(command)[1:]
    if "--model" in words:
        assert CliRunner().invoke(app, ["export", "full-0", "--out", "exported"]).exit_code == 0
    result = CliRunner().invoke(app, words)
    assert result.exit_code in IN_PROCESS[command], f"{result.output}\n{result.exception!r}"


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(DRY))
@pytest.mark.usefixtures("untrained")
def test_a_command_dry_runs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(command)
    words += [] if "--dry-run" in words else ["--dry-run"]
    if program == "wimfris":
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
        return
    assert run_study(Path(words[0]), words[1:]) == 0, capsys.readouterr().err


def run_study(path: Path, arguments: list[str]) -> int:
    """Run a file of studies/ in this process; return its exit code."""
    from wimfris.cli import search, study, tuning

    own = {"search": search.main, "tuning": tuning.main}
    main = own.get(path.stem) or partial(study.main, load_study(path.stem, path.parent))
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


# --- runs by a shell --------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project's files at scale smoke with two variants and two seeds, without git."""
    folder = tmp_path / "wimfris"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if (ROOT / name).is_file() and not name.startswith("reports/records/") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    path = folder / "params.yaml"
    content = yaml.safe_load(path.read_text())
    core = {name: content["variants"][name] for name in ("full", "none")}
    content |= {
        "scale": "smoke",
        "variants": core,
        "seeds": [0, 1],
        "extended": {},
        "controls": {},
        "extra_seeds": {},
        "explorer": ["full", "none"],
    }
    content["search"]["trials"] = 3
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


def before(command: str, folder: Path) -> str:
    """Prepare what the pages ask for before a command; return the command as this clone needs it."""
    if command == "wimfris matrix --variants window_3":
        example = section("A variant", "yaml")
        path = folder / "params.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | yaml.safe_load(example), sort_keys=False))
    if command == "python studies/window_three.py --dry-run":
        (folder / "studies" / "window_three.py").write_text(section("A study", "python"))
        path = folder / "dvc.yaml"
        path.write_text(path.read_text().replace("[comparison, ", "[window_three, comparison, "))
    if command.startswith("make "):
        return f"{command} VENV={sys.prefix} STAMP=installed"
    if command.startswith("wimfris promote "):
        content = json.loads((folder / "reports" / "search" / "scenes-smoke" / "window-tpe.json").read_text())
        trial = next(trial["name"] for trial in content["trials"] if trial["state"] == "complete")
        return command.replace("all_tpe_parameters_0004", trial)  # the only search of this clone
    if command == "python studies/search.py --space all --no-train":
        return command.replace(" --space all", "")
    return command


def section(heading: str, language: str) -> str:
    """Return the first block of a language under a heading of docs/extend.md."""
    text = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return next(body for name, body in FENCE.findall(part) if name == language)


@pytest.mark.long
def test_the_commands_run_in_a_clone(clone: Path, tmp_path: Path) -> None:
    values = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    values |= {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), values.get("PATH", "")])
    values |= {"PATH": path, "COLUMNS": "200", "PYTHONPATH": str(clone)}
    (clone / "installed").touch()

    def run(command: str) -> None:
        result = subprocess.run(command, shell=True, cwd=clone, env=values, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"

    for command in SHELL:
        run(before(command, clone))
        if command == "git commit -m start":
            run(f"dvc remote add --default shared {tmp_path / 'remote'}")


def test_a_comment_and_a_continued_line_are_read() -> None:
    text = "```sh\n# a comment\nmake x   # why\na \\\n  b && c\n```\n\n```python\nd\n```\n"
    assert commands_of(text) == ["make x", "a b", "c"]


def test_every_shell_block_is_called_sh() -> None:
    """Another name would escape these tests."""
    names = {language for page in PAGES for language, _ in FENCE.findall(page.read_text(encoding="utf-8"))}
    assert names <= {"sh", "python", "yaml"}
