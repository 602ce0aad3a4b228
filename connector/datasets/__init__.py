"""Datasets: register, describe, version; and the kinds of source they come from."""
