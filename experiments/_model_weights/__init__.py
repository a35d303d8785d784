"""The parts of the study of model weights; `experiments.model_weights` is its front door."""
