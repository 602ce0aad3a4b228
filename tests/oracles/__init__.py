"""Random cases of five families, each against a second opinion: generators, oracles, and one driver."""
