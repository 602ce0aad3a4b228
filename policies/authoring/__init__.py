"""The short YAML form of an offer: reading, writing, and conversion to and from a policy."""
