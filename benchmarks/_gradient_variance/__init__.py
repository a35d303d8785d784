"""The parts of the gradient-variance benchmark; `benchmarks.gradient_variance` is its front door."""
