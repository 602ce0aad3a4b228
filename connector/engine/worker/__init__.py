"""What runs inside a worker process. Nothing else imports it, and only it imports DuckDB and pyarrow."""
