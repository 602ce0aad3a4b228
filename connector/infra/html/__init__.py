"""The look that the pages of console and catalogue share: style sheet, script, logo and phrases."""

from pathlib import Path

FOLDER = Path(__file__).parent
FILES = {"hanse.css": "text/css", "hanse.js": "text/javascript", "mark.svg": "image/svg+xml"}
