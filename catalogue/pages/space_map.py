"""Where the owners of the data space stand on its map: around the catalogue, the largest first. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from catalogue.pages.member_lines import MemberLine

WIDTH, HEIGHT = 940, 420  # of the drawing, in its own units
OWNERS_MAX = 14
_RADIUS_X, _RADIUS_Y = 210, 145
_LEAST, _LARGEST = 7.0, 20.0  # radius of a circle
_TITLE_MAX = 26
LINE = 17  # from one line of a label to the next
_UPRIGHT = 0.2  # cosine below which a label stands above or below its circle


@dataclass(frozen=True, slots=True)
class MapPlace:
    """One owner on the map: centre and radius of its circle, and where the first of two lines of its label stands."""

    line: MemberLine
    label: str
    x: float
    y: float
    radius: float
    label_x: float
    label_y: float
    anchor: str


def place_owners(lines: Sequence[MemberLine]) -> list[MapPlace]:
    """The OWNERS_MAX owners with most datasets, clockwise from the top. Areas go with numbers of datasets."""
    shown = sorted(lines, key=lambda line: (-line.datasets, line.member.name))[:OWNERS_MAX]
    most = max((line.datasets for line in shown), default=0) or 1
    return [_place(line, 2 * math.pi * at / len(shown), most) for at, line in enumerate(shown)]


def _place(line: MemberLine, angle: float, most: int) -> MapPlace:
    side, height = math.sin(angle), -math.cos(angle)
    x, y = WIDTH / 2 + _RADIUS_X * side, HEIGHT / 2 + _RADIUS_Y * height
    radius = max(_LEAST, _LARGEST * math.sqrt(line.datasets / most))
    if abs(side) < _UPRIGHT:
        anchor, label_x, label_y = "middle", x, y + (radius + LINE if height > 0 else -radius - 8 - LINE)
    else:
        anchor, label_x, label_y = ("start" if side > 0 else "end"), x + math.copysign(radius + 8, side), y - 2
    title = line.member.title
    label = title if len(title) <= _TITLE_MAX else f"{title[: _TITLE_MAX - 2]} …"
    return MapPlace(
        line, label, round(x, 1), round(y, 1), round(radius, 1), round(label_x, 1), round(label_y, 1), anchor
    )
