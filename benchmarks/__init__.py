"""Scripts that measure; docs/benchmarks.md holds what they printed. Nothing here passes or fails."""
