"""Federated queries: plans a query over several owners, asks each owner for its part, and puts the answers together."""
