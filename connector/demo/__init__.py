"""A small data space on one machine, started as separate processes, and the story that it plays.

Steers the product only through what an operator and a user have: settings, command line, management API, SDK.
"""
