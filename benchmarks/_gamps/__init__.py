"""The parts of the benchmark of gradient-aware search; `benchmarks.gamps` is its front door."""
