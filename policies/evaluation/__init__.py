"""Evaluates a policy against facts and returns a decision."""
