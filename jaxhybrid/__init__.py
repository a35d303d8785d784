"""Gradients from a model, truth from experience: policy-gradient estimators and systems as pure JAX functions."""

__version__ = "0.1.0"
