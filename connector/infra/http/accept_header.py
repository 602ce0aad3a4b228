"""Headers by which a client says what it prefers: `Accept`, `Accept-Language` (RFC 9110, 12.4.2)."""

from __future__ import annotations


def read_weights(header: str, *, most: int | None = None) -> dict[str, float]:
    """Return the weight (0 to 1) of each name of a header, in lower case and in their order.

    Of a repeated name the largest counts; entries with an invalid weight are left out. `most`: how many entries count.
    The caller bounds the length.
    """
    found: dict[str, float] = {}
    for entry in header.split(",")[:most]:
        name, *parameters = (word.strip().lower() for word in entry.split(";"))
        weight = next((_parse_weight(word) for word in parameters if word.startswith("q=")), 1.0)
        if name and weight is not None:
            found[name] = max(weight, found.get(name, 0.0))
    return found


def _parse_weight(word: str) -> float | None:
    try:
        weight = float(word[2:])
    except ValueError:
        return None
    return weight if 0 <= weight <= 1 else None
