"""How Hanse's pages look, and what they say alike: the stylesheet, the conveniences, the mark, words of both."""

from pathlib import Path

FOLDER = Path(__file__).parent
FILES = {"hanse.css": "text/css", "hanse.js": "text/javascript", "mark.svg": "image/svg+xml"}
