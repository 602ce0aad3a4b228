"""Loaders with the real frameworks: `make test-loaders`. Not collected by `make test`, which has none of them."""
