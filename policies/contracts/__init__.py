"""Compiles an agreement into data contracts: columns, masks, row filters and limits for one table."""
