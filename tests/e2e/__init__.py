"""Stories over real processes, real HTTP, real Parquet."""
