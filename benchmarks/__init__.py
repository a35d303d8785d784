"""Numbers, not assertions; ``python -m benchmarks`` lists them."""
