"""How Hanse's pages look: the stylesheet, the conveniences and the mark that console and catalogue both serve."""

from pathlib import Path

FOLDER = Path(__file__).parent
FILES = {"hanse.css": "text/css", "hanse.js": "text/javascript", "mark.svg": "image/svg+xml"}
