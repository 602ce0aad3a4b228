"""Builders and real parts for tests: databases, Parquet files, a clock, two connectors joined in memory."""
