"""A data contract applied to a query: the SQL gate, the policy wrap, the engine's second check.

`sql.prepare` is the whole way from text to what may run; `statement` reads text into a checked tree, `bind`
resolves its names, `wrap` puts the policy in place of each dataset, `aggregate` holds the rules for
aggregate-only answers, `recheck` judges what the engine's own parser made of the result. The only part of
`policies` that imports sqlglot. No engine, no I/O.
"""
