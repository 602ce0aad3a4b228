"""Words and small helpers of the pages: ages, dates, chips of an offer, the Python snippet. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from markupsafe import Markup, escape

from catalogue.facets import FACETS, POLICIES, Card
from catalogue.offers import Offer
from catalogue.question import Question

_UNITS = ((86_400 * 2, 86_400, "days"), (7_200, 3_600, "hours"), (120, 60, "minutes"))
_BY_DETAIL = ("purpose-bound", "time-limited")  # said more exactly by the purposes and the date
TIERS = {
    "technical": "enforced by the owner",
    "attested": "rests on a verified claim",
    "contractual": "rests on the contract",
    "refused": "not understood",
}


def ago(seconds: float) -> str:
    """`just now`, `5 minutes ago`, `3 days ago`."""
    for least, size, unit in _UNITS:
        if seconds >= least:
            return f"{int(seconds // size)} {unit} ago"
    return "just now" if seconds < 60 else "a minute ago"


def until(seconds: float) -> str:
    """`now`, `in 5 minutes`."""
    if seconds < 1:
        return "now"
    for least, size, unit in _UNITS:
        if seconds >= least:
            return f"in {int(seconds // size)} {unit}"
    return f"in {int(seconds)} s"


def day(at: float | str) -> str:
    """`31 December 2027`, from a time or an ISO date; what is no date stays as it is."""
    try:
        moment = datetime.fromisoformat(at) if isinstance(at, str) else datetime.fromtimestamp(at, UTC)
    except ValueError:
        return str(at)
    return f"{moment.day} {moment:%B %Y}"


def instant(at: float) -> str:
    """For `<time datetime>`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Chip:
    """A short label on an offer, and whether it limits what leaves."""

    text: str
    rule: bool = False


def chips(offers: Iterable[Offer]) -> list[Chip]:
    """Offers in a few labels: what is allowed, for what, until when."""
    classes, purposes, ends = [], [], []
    for offer in offers:
        classes += [name for name in offer.classes if name not in _BY_DETAIL]
        purposes += [FACETS["purpose"].label(name.rpartition(":")[2]) for name in offer.purposes]
        ends += [offer.until] if offer.until else []
    made = [Chip(POLICIES.get(name, name), name in ("aggregates-only", "minimum-group")) for name in classes]
    made += [Chip(name) for name in purposes]
    made += [Chip(f"Until {day(end)}") for end in ends]
    return list(dict.fromkeys(made))


def path_of(dataset_id: str) -> str:
    """The page of a dataset."""
    return f"/datasets/{quote(dataset_id, safe=':')}"


def search_url(question: Question, **changes: Any) -> str:
    """The search page for a changed question; a facet or column that is given is put in where it is not, else out."""
    filters = {name: list(values) for name, values in question.filters.items()}
    columns = list(question.columns)
    words = changes.pop("words", question.words)
    page = changes.pop("page", 1)
    for name, value in changes.items():
        chosen = columns if name == "column" else filters.setdefault(name, [])
        chosen.remove(value) if value in chosen else chosen.append(value)
    pairs = [("q", words)] if words else []
    pairs += [("column", column) for column in columns]
    pairs += [(name, value) for name, values in filters.items() for value in values]
    pairs += [("page", str(page))] if page > 1 else []
    return "/?" + urlencode(pairs) if pairs else "/"


def snippet(card: Card) -> str:
    """Python that gets at the data: rows where an offer lets rows leave, else an aggregate."""
    purposes = [purpose for offer in card.offers for purpose in offer.purposes]
    purpose = f', purpose="{purposes[0]}"' if purposes else ""
    lines = [
        "import hanse",
        "",
        'space = hanse.connect("https://your-connector.example", token)',
        f'data = space.agree("{card.owner}/{card.entry.name}"{purpose})',
    ]
    actions = {action for offer in card.offers for action in offer.actions}
    if actions & {"ds:stream", "ds:train", "odrl:read", "odrl:use"}:
        lines += ["for batch in data.stream():", "    print(batch.num_rows)"]
    else:
        sql = f'SELECT count(*) AS n FROM "{card.owner}".{_name(card.entry.name)}'  # noqa: S608  # shown, not run
        lines += [f"sql = '{sql}'", f"print(space.query(sql{purpose}).to_pandas())"]
    return "\n".join(lines)


def _name(dataset: str) -> str:
    return dataset if dataset.isidentifier() else f'"{dataset}"'


_KEYWORDS = ("import", "for", "in", "print")


def coloured(code: str) -> Markup:
    """The snippet with its keywords and texts marked for the stylesheet."""
    lines = []
    for line in code.split("\n"):
        pieces = line.split('"') if "'" not in line else [line]
        quoted = ('"' + piece + '"' if odd % 2 else piece for odd, piece in enumerate(pieces))
        lines.append(
            "".join(
                f'<span class="s">{escape(piece)}</span>' if piece.startswith('"') else _marked(piece)
                for piece in quoted
            )
        )
    return Markup("\n".join(lines))  # noqa: S704  # every piece was escaped above


def _marked(text: str) -> str:
    words = text.split(" ")
    return " ".join(f'<span class="k">{word}</span>' if word in _KEYWORDS else str(escape(word)) for word in words)


def licence_name(text: str) -> str:
    """A licence's IRI as people say it."""
    return text.rstrip("/").rpartition("/")[2] if text.startswith("http") else text


def counted(number: int, one: str, many: str = "") -> str:
    """`1 dataset`, `1,204 datasets`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


FILTERS: Mapping[str, Any] = {
    "ago": ago,
    "until": until,
    "day": day,
    "instant": instant,
    "chips": chips,
    "path": path_of,
    "coloured": coloured,
    "licence": licence_name,
    "counted": counted,
}
