"""What the benchmarks share: cases, the two sides, and results."""
