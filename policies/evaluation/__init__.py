"""A policy and facts in, a decision out."""
