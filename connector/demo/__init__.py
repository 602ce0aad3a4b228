"""Demo: a small data space on one machine, run as separate processes, and a scripted tour.

Uses the product only as operators and users do: settings, command line, management API, SDK.
"""
