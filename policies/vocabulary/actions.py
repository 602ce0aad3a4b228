"""The tree of actions (ODRL 2.2 `includedIn`), and which other names mean which.

A rule on an action covers everything below it. Roots are `use` and `transfer`.
"""

from __future__ import annotations

from policies.vocabulary.terms import Action, Tier, ds, odrl

# Deprecated ODRL actions reach the tree only through their exact match. What ODRL calls stream is what the owner's
# connector serves under that name: beside it, a prohibition of the one would leave the other.
SAME: dict[str, str] = {
    odrl("write"): odrl("modify"),
    odrl("copy"): odrl("reproduce"),
    odrl("stream"): ds("stream"),
}


def _plain(local: str, phrase: str, *, parent: str = "use") -> Action:
    return Action(name=odrl(local), parent=odrl(parent), help=f"ODRL action {local}.", phrase=phrase)


def _served(name: str, help_: str, phrase: str, *, parent: str = "use") -> Action:
    """What the owner's own connector carries out, and therefore can refuse."""
    return Action(
        name=name,
        parent=odrl(parent),
        help=help_,
        phrase=phrase,
        tier=Tier.TECHNICAL,
        enforced_by="gate",
    )


ACTIONS: tuple[Action, ...] = (
    Action(
        name=odrl("use"),
        parent="",
        help="Any use that does not hand ownership over.",
        phrase="use the data",
        tier=Tier.TECHNICAL,
        enforced_by="gate",
    ),
    Action(name=odrl("transfer"), parent="", help="Hand ownership over.", phrase="transfer ownership of the data"),
    _served(odrl("read"), "Read the data, by queries or as a stream.", "read the data"),
    _served(ds("query"), "Send queries to the owner's connector.", "query the data", parent="read"),
    _served(ds("stream"), "Receive the rows as a stream.", "stream the data", parent="read"),
    _plain("distribute", "distribute the data to third parties"),
    _plain("derive", "derive new data"),
    _plain("aggregate", "aggregate the data"),
    _plain("annotate", "annotate the data"),
    _plain("archive", "archive the data"),
    _plain("concurrentUse", "use the data at several places at once"),
    _plain("digitize", "digitise the data"),
    _plain("execute", "execute the data"),
    _plain("grantUse", "grant use to third parties"),
    _plain("include", "include the data in a larger work"),
    _plain("index", "index the data"),
    _plain("install", "install the data"),
    _plain("modify", "modify the data"),
    _plain("move", "move the data"),
    _plain("play", "play the data"),
    _plain("display", "display the data", parent="play"),
    _plain("present", "present the data in public"),
    _plain("print", "print the data"),
    _plain("reproduce", "make copies of the data"),
    _plain("extract", "extract parts of the data", parent="reproduce"),
    _plain("synchronize", "combine the data in time with other media"),
    _plain("textToSpeech", "have the data read aloud"),
    _plain("transform", "convert the data to another format"),
    _plain("translate", "translate the data"),
    _plain("sell", "sell the data", parent="transfer"),
    _plain("give", "give the data away", parent="transfer"),
)
