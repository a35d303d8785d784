"""Gradient estimators ``(params, example, key, *, ..._fn, knobs) -> (grads, aux)`` of one example and one draw.

Every estimator returns a direction of **ascent**: an estimate of the gradient of the expected return. Optimisers of
optax descend, so negate it: ``optimiser.update(jax.tree.map(jnp.negative, grads), ...)``.

The names below are functions; import them from here, not from the files of the same names.
"""

from jaxhybrid.estimators.adapters import of_loss
from jaxhybrid.estimators.control_variate import control_variate
from jaxhybrid.estimators.model_value import model_value, per_decision
from jaxhybrid.estimators.pathwise import pathwise
from jaxhybrid.estimators.score_function import score_function

__all__ = ["control_variate", "model_value", "of_loss", "pathwise", "per_decision", "score_function"]
