"""Planning by a model that is told the task: values of an abstract state, one step or a few ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxhybrid.errors import InputError
from jaxhybrid.planning.tree import plan_q, plan_values
from jaxhybrid.types import Array

__all__ = ["TaskModel", "planned_values"]


class TaskModel(NamedTuple):
    """A model with its parameters, the task's code and the instruction bound.

    Attributes:
      dynamics_fn: ``dynamics_fn(x, action []) -> x``.
      reward_fn: ``reward_fn(x, action []) -> []``.
      discount_fn: ``discount_fn(x, action []) -> []``, gamma included.
    """

    dynamics_fn: Callable[[Array, Array], Array]
    reward_fn: Callable[[Array, Array], Array]
    discount_fn: Callable[[Array, Array], Array]


def planned_values(
    x: Array,
    *,
    q_fn: Callable[[Array], Array],
    model: TaskModel | None,
    depth: int,
    average: bool = False,
) -> Array:
    """Action values of an abstract state, ``Q^0 = Q`` and ``Q^d(x, a) = r + c max_{a'} Q^{d-1}(x', a')``, ``[A]``.

    Args:
      x: abstract state, float ``[X]``.
      q_fn: critic with its parameters, task and instruction bound, ``q_fn(x) -> [A]``.
      model: of this task; None where there is none, which leaves depth 0.
      depth: model steps, static; all actions are expanded.
      average: whether the values of all depths are averaged, as CRAR does, instead of the deepest taken.

    Raises:
      InputError: a depth that needs a model where there is none, or one of which the tree does not fit.

    Source: Tan and Dworschak, Combining model-based and model-free meta-RL, section 3.3, whose ``argmax`` is a maximum.
    """
    if model is None:
        if depth:
            raise InputError(f"depth={depth} plans on a task without a model: learn one, or use depth=0.")
        return q_fn(x)
    values = plan_values(x, q_fn=q_fn, depth=depth, **model._asdict())
    return plan_q(values) if average else values[-1]
