"""Visiting connectors and reading what they offer."""
