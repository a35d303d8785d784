"""The parts of the gradient-error study; `experiments.gradient_error` is its front door."""
