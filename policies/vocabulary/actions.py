"""The tree of actions (ODRL 2.2 `includedIn`) and aliases of actions.

A rule on an action covers everything below it. The roots are `use` and `transfer`.
"""

from __future__ import annotations

from policies.vocabulary.terms import Action, Tier, ds, odrl

# Deprecated ODRL actions are aliases of their exact match. `odrl:stream` is an alias of `ds:stream`: if they were two
# actions, a prohibition of one would leave the other permitted.
ALIASES: dict[str, str] = {
    odrl("write"): odrl("modify"),
    odrl("copy"): odrl("reproduce"),
    odrl("stream"): ds("stream"),
}


def _plain_action(local: str, phrase: str, *, parent: str = "use") -> Action:
    return Action(name=odrl(local), parent=odrl(parent), help=f"ODRL action {local}.", phrase=phrase)


def _served_action(name: str, help_: str, phrase: str, *, parent: str = "use") -> Action:
    """An action that the owner's connector carries out and can refuse."""
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
    _served_action(odrl("read"), "Read the data, by queries or as a stream.", "read the data"),
    _served_action(ds("query"), "Send queries to the owner's connector.", "query the data", parent="read"),
    _served_action(ds("stream"), "Receive the rows as a stream.", "stream the data", parent="read"),
    _plain_action("distribute", "distribute the data to third parties"),
    _plain_action("derive", "derive new data"),
    _plain_action("aggregate", "aggregate the data"),
    _plain_action("annotate", "annotate the data"),
    _plain_action("archive", "archive the data"),
    _plain_action("concurrentUse", "use the data at several places at once"),
    _plain_action("digitize", "digitise the data"),
    _plain_action("execute", "execute the data"),
    _plain_action("grantUse", "grant use to third parties"),
    _plain_action("include", "include the data in a larger work"),
    _plain_action("index", "index the data"),
    _plain_action("install", "install the data"),
    _plain_action("modify", "modify the data"),
    _plain_action("move", "move the data"),
    _plain_action("play", "play the data"),
    _plain_action("display", "display the data", parent="play"),
    _plain_action("present", "present the data in public"),
    _plain_action("print", "print the data"),
    _plain_action("reproduce", "make copies of the data"),
    _plain_action("extract", "extract parts of the data", parent="reproduce"),
    _plain_action("synchronize", "combine the data in time with other media"),
    _plain_action("textToSpeech", "have the data read aloud"),
    _plain_action("transform", "convert the data to another format"),
    _plain_action("translate", "translate the data"),
    _plain_action("sell", "sell the data", parent="transfer"),
    _plain_action("give", "give the data away", parent="transfer"),
)
