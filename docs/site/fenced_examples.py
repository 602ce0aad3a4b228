"""Shows the example of a docstring as code: an extension of griffe, which reads the docstrings for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^( *)Example:\n((?:\1 +.*\n|\n)+)", re.MULTILINE)


class FencedExamples(griffe.Extension):
    """Puts a fence around the lines below `Example:`."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fence, obj.docstring.value + "\n").rstrip()


def _fence(found: re.Match[str]) -> str:
    indent = f"{found[1]}    "
    return f"{found[1]}Example:\n{indent}```python\n{found[2].rstrip()}\n{indent}```\n\n"
