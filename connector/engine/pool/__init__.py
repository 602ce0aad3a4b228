"""The main process's side of the worker processes. Imports neither DuckDB nor pyarrow."""
