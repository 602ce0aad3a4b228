"""The result of `Space.explain`: a dictionary that notebooks show as a picture."""

from __future__ import annotations

from html import escape
from typing import Any


class Explained(dict[str, Any]):
    """`fragments`, `residual`, `stayed`, `bytes_estimate`, `text`, `svg`; after a run `actual` with real figures.

    A notebook shows the picture and the text; `print` the text alone.
    """

    def __repr__(self) -> str:
        """Show the size of the plan, neither its picture nor the parts of its queries."""
        fragments, estimate = self.get("fragments", []), self.get("bytes_estimate")
        size = f", about {estimate:,} bytes" if isinstance(estimate, int | float) else ""
        return f"<Explained, {len(fragments)} fragments{size}; print it for the text>"

    def __str__(self) -> str:
        return str(self.get("text", ""))

    def _repr_svg_(self) -> str:
        return str(self.get("svg", ""))

    def _repr_html_(self) -> str:
        """Return the picture, which the participant's own connector drew, and the text below it."""
        text = escape(str(self))
        return f"{self._repr_svg_()}<details><summary>what is asked of whom</summary><pre>{text}</pre></details>"
