"""The parts of the gradient-aware search study; `experiments.gamps` is its front door."""
