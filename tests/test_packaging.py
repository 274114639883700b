"""What the project says of itself: dependencies and pins, data files, citation; and no path of anyone's machine."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]

# Absolute paths of home and workplace folders; a `/` inside a longer path or an address does not start one.
MACHINE_PATH = re.compile(r"(?<![\w.~:/)}*-])/(?:home|root|work|Users)/[\w.-]+")


def normal(name: str) -> str:
    """The name of a distribution as PEP 503 compares it, without version or extras."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name, maxsplit=1)[0]).lower()


def constraints() -> dict[str, str]:
    """Distribution -> what stands behind its name in constraints.txt."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {normal(line): re.sub(r"^[\w.-]+", "", line) for line in lines if line}


def imported() -> dict[str, set[str]]:
    """Top-level module, neither the standard library's nor our own -> the files of wimfris/ that import it."""
    users: dict[str, set[str]] = {}
    for path in sorted((ROOT / "wimfris").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for module in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"wimfris"}:
                users.setdefault(module, set()).add(str(path.relative_to(ROOT)))
    return users


def files() -> list[Path]:
    """The files that git tracks or would add, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git repository, so that the project's files are not known")
    return [path for path in map(Path, filter(None, listing.stdout.split("\0"))) if (ROOT / path).is_file()]


@pytest.mark.slow
def test_every_imported_package_is_a_declared_dependency() -> None:
    distributions = importlib.metadata.packages_distributions()
    declared = {normal(line) for line in DIRECT}
    missing = {
        module: sorted(where)
        for module, where in imported().items()
        if not declared & {normal(name) for name in distributions.get(module, [module])}
    }
    assert not missing


def test_every_direct_dependency_is_pinned_and_nothing_else_is() -> None:
    pins = constraints()
    assert set(pins) == {normal(line) for line in DIRECT}
    assert [name for name, pin in pins.items() if not re.fullmatch(r"==\d[\w.]*", pin)] == []


def test_every_data_file_of_the_package_is_installed_with_it() -> None:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {
        path.relative_to(ROOT)
        for package, patterns in tables.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert [
        str(path) for path in files() if path.parts[0] == "wimfris" and path.suffix != ".py" and path not in shipped
    ] == []


def test_the_citation_is_the_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    assert paper["title"] == (
        "WIMFRIS: WIndow Mamba Fusion and Parameter Efficient Tuning for Referring Image Segmentation"
    )
    assert [author["family-names"] for author in paper["authors"]] == ["Moon", "Yu", "Lee", "Kang"]
    assert citation["type"] == "software"
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])


def test_no_file_names_a_folder_of_a_machine() -> None:
    paths = []
    for path in files():
        text = (ROOT / path).read_bytes().decode("utf-8", errors="ignore")
        paths += [f"{path}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
        paths += [f"{path}: this checkout's own path"] * (len(ROOT.parts) > 2 and f"{ROOT}/" in text)
    assert paths == []


@pytest.mark.parametrize("folder", ["home", "root", "work", "Users"])
def test_a_machine_path_differs_from_an_address(folder: str) -> None:
    inner = f"/{folder}/someone/file"
    assert MACHINE_PATH.search(f'open("{inner}")')
    assert MACHINE_PATH.search(f"see {inner}")
    for harmless in (f"https://example.org{inner}", f"..{inner}", f"runs{inner}", f"~{inner}"):
        assert not MACHINE_PATH.search(harmless)
