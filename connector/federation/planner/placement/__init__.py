"""Planner rules that decide which parts of one SELECT block run at an owner."""
