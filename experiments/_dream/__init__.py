"""The parts of the figure of DREAM; `experiments.dream_figure` is its front door."""
