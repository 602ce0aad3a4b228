"""Queries of the connector's database, one module for each aggregate."""
