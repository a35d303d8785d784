"""Losses ``(params, example, key, *, ..._fn, knobs) -> (scalar, aux)`` of one example and one draw."""
