"""Usage policies: read ODRL, evaluate it, explain it, and compile it into a data contract that queries are held to.

A pure library: no I/O, clock, database or web framework. Facts, times and keys are arguments.
"""
