"""The parts of the kill-point benchmark."""
