"""Queries: the engine in its worker processes, the planner, and the coordination of fragments."""
