"""Applies a data contract to a query: the SQL gate and the view that replaces each dataset.

`gate.prepare` goes from text to a statement that may run. `policy_view` replaces a dataset by its policy subquery,
`grid`, `aggregate_shapes` and `noised_query` handle aggregate-only answers. With `policies.sql` the only part of
`policies` that imports sqlglot. No engine, no I/O.
"""
