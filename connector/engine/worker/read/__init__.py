"""How a worker reads: pinned files, the locked-down engine, row ranges, Parquet scans."""
