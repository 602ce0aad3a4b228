"""Planner rules that decide which work runs at an owner."""
