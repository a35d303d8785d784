"""Planners that search a model from one observation."""
