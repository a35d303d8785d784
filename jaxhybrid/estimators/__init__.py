"""Gradient estimators ``(params, example, key, *, ..._fn, knobs) -> (grads, aux)``."""
