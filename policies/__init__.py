"""Usage policies that decide: ODRL read, evaluated, explained, and compiled into a data contract.

A pure library: no I/O, no clock, no database, no web. Facts, time and keys are arguments.
"""
