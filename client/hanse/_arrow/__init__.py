"""Checks of received Arrow data, before it is used."""
