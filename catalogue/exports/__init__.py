"""Export formats of the catalogue: one line per format in EXPORTS."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from catalogue.exports.graph import Node, jsonld, merge_nodes, rdfxml, turtle


@dataclass(frozen=True, slots=True)
class Export:
    """A serialisation of the DCAT-AP graph: title, media type and writer."""

    title: str
    media_type: str
    write: Callable[[Iterable[Node]], str]

    def text(self, nodes: Iterable[Node]) -> str:
        return self.write(merge_nodes(nodes))


EXPORTS: dict[str, Export] = {
    "jsonld": Export("DCAT-AP (JSON-LD)", "application/ld+json", jsonld),
    "ttl": Export("DCAT-AP (Turtle)", "text/turtle", turtle),
    "rdf": Export("DCAT-AP (RDF/XML)", "application/rdf+xml", rdfxml),
}
