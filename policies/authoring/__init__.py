"""The short YAML form of an offer, read and written."""
