"""The parts of `benchmarks.bench_stream`: its data, the servers it compares with, and what its clients do."""
