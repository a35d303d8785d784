"""The parts of the study of MSCV; `experiments.mscv` is its front door."""
