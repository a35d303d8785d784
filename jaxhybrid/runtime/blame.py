"""Where the first NaN or infinity of a computation came from.

The function is traced and run with the value of every operation kept. From the value that is not finite the search goes
back through the operands that are not finite either, to the operation whose operands all are. Loops are entered at the
first turn after which the value was bad, so a result says which turn. Unlike a check of every operation, such as
``jax_debug_nans``, it does not stop at a NaN that is meant, such as a metric that has no value yet; and unlike
``jax.disable_jit`` it compiles each body as one program, which takes seconds where single operations take minutes.
``compiled=False`` runs the operations one by one all the same: for a failure that one program does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.extend.source_info_util import summarize

from jaxhybrid.types import PyTree

__all__ = ["Origin", "first_nonfinite", "nonfinite"]

# Calls that are the operations they hold.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat")


class Origin(NamedTuple):
    """Where a value stopped being finite.

    Attributes:
      what: the operation, or the argument that already was not finite.
      where: file, line and function of the operation; empty for an argument.
      turns: the turns of the loops around it, from the outside in, such as ``("turn 3 of 8",)``.
    """

    what: str
    where: str
    turns: tuple[str, ...] = ()

    def __str__(self) -> str:
        inside = f" in {', '.join(self.turns)}" if self.turns else ""
        return f"{self.what}{f' at {self.where}' if self.where else ''}{inside}"


class _Operation(NamedTuple):
    """One operation, and the outermost call that it is part of; values are known by number."""

    eqn: Any
    call: Any
    ins: tuple[int, ...]
    outs: tuple[int, ...]


class _Level(NamedTuple):
    """The operations of one body, calls inlined, and their values: of the function itself or of one turn of a loop."""

    values: list[Any]
    makers: dict[int, _Operation]
    varying: set[int]  # what depends on the inputs; all else is constant
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    compiled: bool  # whether a body is one program, or its operations run one by one


# Whether a value is the bad one that is looked for; told the value and, for a loop, what it was before the loop.
_Bad = Callable[[Any, Any], bool]


def nonfinite(value: Any) -> np.ndarray | None:
    """Returns the first index at which an array is not finite, or None; arrays of no floating-point type are finite."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return None
    bad = np.argwhere(~np.isfinite(np.asarray(value)))
    return bad[0] if len(bad) else None


def first_nonfinite(fn: Callable[..., Any], args: Sequence[PyTree], target: str, *, compiled: bool = True) -> Origin:
    """Finds where a result of ``fn(*args)`` stopped being finite.

    Args:
      fn: pure and traceable.
      args: its arguments.
      target: path of the result as ``jax.tree_util.keystr`` writes it. Where it is an integer, the count of refused
        updates for instance, the search is for the check ``isfinite`` that made it rise.
      compiled: runs each body as one program; False runs operation by operation, which is slow: each is compiled alone.

    Returns:
      The operation or the argument.

    Raises:
      ValueError: that result is finite, or did not change.
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    results = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tuple(args))]
    level = _program(closed, compiled)(jax.tree.leaves(tuple(args)))
    value = level.outputs[results.index(target)]
    found = _search(level, value, _is_nonfinite if nonfinite(level.values[value]) is not None else _has_risen)
    if isinstance(found, Origin):
        return found
    index = nonfinite(level.values[level.inputs[found]])
    if index is None:
        raise ValueError(f"{target} is finite")
    return Origin(f"{names[found]}{index.tolist()}, which was not finite before", "")


def _is_nonfinite(value: Any, _: Any) -> bool:
    return nonfinite(value) is not None


def _has_risen(value: Any, before: Any) -> bool:
    return before is None or bool(np.any(np.asarray(value) != np.asarray(before)))


def _program(closed: Any, compiled: bool) -> Callable[[Sequence[Any]], _Level]:
    """Makes a function that runs a body and returns the value of every operation."""
    makers: dict[int, _Operation] = {}
    varying: set[int] = set()
    inputs: list[int] = []
    outputs: list[int] = []

    def everything(args: Sequence[Any]) -> list[Any]:
        values: list[Any] = []

        def keep(value: Any) -> int:
            values.append(value)
            return len(values) - 1

        def run(jaxpr: Any, consts: Sequence[int], given: Sequence[int], call: Any = None) -> list[int]:
            known = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, given, strict=True))

            def number(atom: Any) -> int:
                return keep(atom.val) if isinstance(atom, jex.Literal) else known[atom]

            for eqn in jaxpr.eqns:
                ins = tuple(number(atom) for atom in eqn.invars)
                inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")) if eqn.primitive.name in _CALLS else None
                if inner is None:
                    outs = tuple(keep(value) for value in _apply(eqn, [values[i] for i in ins]))
                    makers.update(dict.fromkeys(outs, _Operation(eqn, call or eqn, ins, outs)))
                    varying.update(outs if varying.intersection(ins) else ())
                elif isinstance(inner, jex.ClosedJaxpr):
                    outs = tuple(run(inner.jaxpr, [keep(const) for const in inner.consts], ins, call or eqn))
                else:
                    outs = tuple(run(inner, [], ins, call or eqn))
                known |= dict(zip(eqn.outvars, outs, strict=True))
            return [number(atom) for atom in jaxpr.outvars]

        inputs[:] = [keep(value) for value in args]
        varying.update(inputs)
        outputs[:] = run(closed.jaxpr, [keep(const) for const in closed.consts], inputs)
        return values

    # Run a few times only: compiling is what takes the time.
    run_once = jax.jit(everything, compiler_options={"xla_backend_optimization_level": 0}) if compiled else everything
    return lambda args: _Level(run_once(list(args)), makers, varying, tuple(inputs), tuple(outputs), compiled)


def _apply(eqn: Any, values: list[Any]) -> list[Any]:
    result = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(result) if eqn.primitive.multiple_results else [result]


def _search(level: _Level, value: int, bad: _Bad) -> Origin | int:
    """Goes back from a bad value to its origin, or to the number of the input that is."""
    while value not in level.inputs:
        operation = level.makers.get(value)
        if operation is None:
            return Origin("a constant", "")
        if operation.eqn.primitive.name in _ENTER:
            found = _ENTER[operation.eqn.primitive.name](level, operation, operation.outs.index(value), bad)
            if isinstance(found, Origin):
                return found
            value, bad = operation.ins[found], _is_nonfinite if _is_float(level, operation.ins[found]) else bad
        elif bad is _has_risen:
            return _search_check(level, value)
        else:
            before = _culprit(level, operation, value)
            if before is None:
                return _describe(operation, level.values[value])
            value = before
    return level.inputs.index(value)


def _search_check(level: _Level, value: int) -> Origin | int:
    """Goes back from a count to the nearest failed ``isfinite`` that it depends on, and on from what was checked."""
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop(0)
        operation = level.makers.get(current)
        if operation is None:
            continue
        name = operation.eqn.primitive.name
        if name == "is_finite" and not np.all(np.asarray(level.values[current])):
            return _search(level, operation.ins[0], _is_nonfinite)
        if name in _ENTER and not _is_float(level, current):
            return _search(level, current, _has_risen)
        waiting += [i for i in operation.ins if i not in seen]
        seen |= set(operation.ins)
    raise ValueError("no check of finiteness failed")


def _culprit(level: _Level, operation: _Operation, value: int) -> int | None:
    """The operand that made a value not finite; None if all are finite, or only constants are not."""
    bad = [i for i in operation.ins if nonfinite(level.values[i]) is not None]
    made = [i for i in bad if i in level.varying]
    result = np.asarray(level.values[value])
    index = tuple(nonfinite(result))  # type: ignore[arg-type]  # it is not finite
    same = [i for i in made if np.shape(level.values[i]) == result.shape]
    if operation.eqn.primitive.name == "select_n":
        which, *cases = operation.ins
        chosen = cases[int(np.broadcast_to(np.asarray(level.values[which]), result.shape)[index])]
        return chosen if chosen in made else None
    # Of operands of the same shape the one that is bad at the same place.
    exact = [i for i in same if not np.isfinite(np.asarray(level.values[i])[index])]
    return next(iter(exact or made), None)


def _describe(operation: _Operation, value: Any) -> Origin:
    index = nonfinite(value)
    bad = np.asarray(value)[tuple(index)]  # type: ignore[arg-type]  # it is not finite
    # Inside a call JAX may remember the place of an earlier call of the same function.
    source = operation.call.source_info
    backwards = "the gradient of " if "transpose" in str(source.name_stack) else ""
    return Origin(f"{bad} from {backwards}{operation.eqn.primitive.name}", summarize(source))


def _is_float(level: _Level, value: int) -> bool:
    return jnp.issubdtype(jnp.result_type(level.values[value]), jnp.inexact)


class _Loop(NamedTuple):
    """A scan or while loop; the inputs of its body are constants, the carry, and a slice of each stream."""

    body: Callable[[Sequence[Any]], _Level]
    num_consts: int
    num_carry: int
    length: int
    order: Sequence[int]
    consts: list[Any]
    first: list[Any]
    streams: list[Any]
    proceed: Callable[[list[Any]], bool]


def _scan(level: _Level, operation: _Operation, out: int, bad: _Bad) -> Origin | int:
    params = operation.eqn.params
    values = [level.values[i] for i in operation.ins]
    if "ft_in" in params:  # from jax 0.11 on
        num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
    else:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    loop = _Loop(
        body=_program(params["jaxpr"], level.compiled),
        num_consts=num_consts,
        num_carry=num_carry,
        length=params["length"],
        order=range(params["length"])[::-1] if params["reverse"] else range(params["length"]),
        consts=values[:num_consts],
        first=values[num_consts : num_consts + num_carry],
        streams=values[num_consts + num_carry :],
        proceed=lambda _: True,
    )
    return _enter(loop, out, bad)


def _while(level: _Level, operation: _Operation, out: int, bad: _Bad) -> Origin | int:
    params = operation.eqn.params
    values = [level.values[i] for i in operation.ins]
    skipped, num_consts = params["cond_nconsts"], params["body_nconsts"]
    condition = jax.jit(jex.jaxpr_as_fun(params["cond_jaxpr"]))
    loop = _Loop(
        body=_program(params["body_jaxpr"], level.compiled),
        num_consts=num_consts,
        num_carry=len(values) - skipped - num_consts,
        length=0,
        order=range(10**9),
        consts=values[skipped : skipped + num_consts],
        first=values[skipped + num_consts :],
        streams=[],
        proceed=lambda carry: bool(condition(*values[:skipped], *carry)[0]),
    )
    found = _enter(loop, out, bad)
    return found if isinstance(found, Origin) else found + skipped


def _cond(level: _Level, operation: _Operation, out: int, bad: _Bad) -> Origin | int:
    index, *values = [level.values[i] for i in operation.ins]
    branches = operation.eqn.params["branches"]
    branch = branches[int(np.clip(int(index), 0, len(branches) - 1))]
    inner = _program(branch, level.compiled)(values)
    found = _search(inner, inner.outputs[out], bad)
    return found if isinstance(found, Origin) else found + 1


_ENTER: dict[str, Callable[[_Level, _Operation, int, _Bad], Origin | int]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


def _enter(loop: _Loop, out: int, bad: _Bad) -> Origin | int:
    """Searches the first turn after which a result of a loop is bad; returns the loop's input if that was."""
    carry = loop.first
    for turn, i in enumerate(loop.order):
        if not loop.proceed(carry):
            break
        level = loop.body([*loop.consts, *carry, *(stream[i] for stream in loop.streams)])
        if bad(level.values[level.outputs[out]], loop.first[out] if out < loop.num_carry else None):
            found = _search(level, level.outputs[out], bad)
            if isinstance(found, Origin):
                of = f" of {loop.length}" if loop.length else ""
                return found._replace(turns=(f"turn {turn}{of}", *found.turns))
            place = found - loop.num_consts
            if not 0 <= place < loop.num_carry or turn == 0:
                return found
            # It came in with the carry: an earlier turn made it.
            return _enter(loop, place, _is_nonfinite)
        carry = [level.values[number] for number in level.outputs[: loop.num_carry]]
    raise ValueError("with every value kept, this one is finite")
