"""Hooks of mkdocs: links of docs/ to files of the repository work in the site, too.

Pictures and the report are copied into the site. Every other file becomes its path, or a link where `repo_url` is set.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
COPIED = (".png", ".html", ".ipynb")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the files that pages show or link."""
    for page in sorted(Path(config.docs_dir).glob("*.md")):
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            path = match[3]
            if path.endswith(COPIED) and f"repository/{path}" not in files.src_uris:
                files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links to files of the repository. Raises PluginError for a file that does not exist."""

    def rewrite(match: re.Match[str]) -> str:
        image, text, path, anchor = match.groups()
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: no such file: {path}")
        if path.endswith(COPIED):
            return f"{image}[{text}](repository/{path})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor or ''})"
        return f"`{path}`" if text in path else f"{text} (`{path}`)"

    return LINK.sub(rewrite, markdown)
