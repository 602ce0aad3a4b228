"""Checks that the files that the docs name are there: `python -m tests.support.named_files`.

Decision records and the changelog are left out: they tell of the tree of their time.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FOLDERS = ("benchmarks", "catalogue", "client", "connector", "deploy", "docs", "policies", "tests")
_PAGES = ("README.md", "CONTRIBUTING.md", "client/README.md", "docs/*.md", "docs/[a-ce-z]*/*.md", "docs/de/**/*.md")
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_SAVED = re.compile(r'^```\w+ title="([^"]+)"', re.MULTILINE)
_QUOTED = re.compile(r"`([^`\n]+)`")
_MODULE = re.compile(r"(?:[\w.-]+/)*\w+\.py")
_PATH = re.compile(rf"(?:{'|'.join(_FOLDERS)})/[\w./-]*")


def list_paths(root: Path = ROOT) -> frozenset[str]:
    """The files and folders of the repository's folders, from its root; folders end in `/`."""
    found = (path for folder in _FOLDERS for path in (root / folder).rglob("*") if "__pycache__" not in path.parts)
    return frozenset(f"{path.relative_to(root)}{'/' * path.is_dir()}" for path in found)


def find_missing(text: str, paths: Collection[str]) -> Iterator[str]:
    """Python files, and paths from the root, that a page names in backticks outside of code blocks and are not there.

    A file may be named by the end of its path, such as `crawl/visit.py`, or be a block that the reader saves.
    """
    saved = set(_SAVED.findall(text))
    for quoted in _QUOTED.findall(_FENCED.sub("", text)):
        for word in quoted.split():
            if _MODULE.fullmatch(word):
                found = word in saved or any(f"/{path}".endswith(f"/{word}") for path in paths)
            else:
                found = not _PATH.fullmatch(word) or word in paths or f"{word}/" in paths or word[:-1] in _FOLDERS
            if not found:
                yield word


def main() -> int:
    paths = list_paths()
    missing = [
        (page.relative_to(ROOT), word)
        for pattern in _PAGES
        for page in sorted(ROOT.glob(pattern))
        for word in find_missing(page.read_text("utf-8"), paths)
    ]
    for page, word in missing:
        print(f"{page}: expected `{word}` in the tree, it is not there; name the file as it is now", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
