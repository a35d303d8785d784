"""Networks that find out which task they are in: encoder of its number, decoder of what was seen, two kinds of policy.

Observations are tuples of small integers. Sequences may have any leading axes: a batch as one array lets the memory
take the gradient of its weights in one product. Of a batch whose lengths are known nothing is computed past the ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhybrid.context_layers import (
    CODE,
    EMBEDDED,
    LSTM,
    Embedder,
    Hidden,
    Linear,
    Look,
    Tuples,
    look_up,
    state_embedder,
)
from jaxhybrid.errors import unknown
from jaxhybrid.networks import Network
from jaxhybrid.ops import packing
from jaxhybrid.ops.packing import Packing
from jaxhybrid.types import Array, Key, PyTree

__all__ = [
    "ContextNetworks",
    "Decoder",
    "Heads",
    "RecurrentQ",
    "TrajectoryDecoder",
    "dueling",
    "make_networks",
]

_HIDDEN, _MEMORY, _DECODER_MEMORY = 256, 64, 128
_PREVIOUS_ACTION = 16


class Heads(NamedTuple):
    """Value ``[...]`` and advantages ``[..., A]`` of states."""

    value: Array
    advantage: Array


class RecurrentQ(NamedTuple):
    """A policy by values over a sequence of observations.

    Attributes:
      init: ``init(key) -> params``.
      apply: ``apply(params, *inputs) -> Heads`` of every step of a sequence, or of many, ``[..., T]``.
      packed: ``packed(params, *inputs, lengths)``, the same for sequences ``[B, T]`` of lengths ``[B]``, zeros past
        their ends, without the arithmetic of what is past them; only of exploration.
      step: ``step(params, hidden, *inputs) -> (hidden, Heads)`` of one step of the same sequence.
      start: the hidden state before the first step; empty where there is no memory.
      embed: ``embed(params, obs [C]) -> [X]``, what the policy makes of an observation before anything else.
      values: ``values(params, x [X], *others) -> Heads`` of an embedded observation; only without a memory.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[..., Heads]
    packed: Callable[..., Heads]
    step: Callable[..., tuple[Hidden, Heads]]
    start: Hidden
    embed: Callable[[PyTree, Array], Array]
    values: Callable[..., Heads]


class Decoder(NamedTuple):
    """What every prefix of a trajectory says about the task; the first prefix, of no step, says nothing.

    Attributes:
      init: ``init(key) -> params``.
      apply: ``apply(params, obs [..., T+1, C], action [..., T]) -> [..., T+1, CODE]``.
      packed: ``packed(params, obs [B, T+1, C], action [B, T], lengths [B])``, the same, zeros past the ends, without
        the arithmetic of what is past them.
      whole: of the same inputs what whole trajectories say, ``[B, CODE]``.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[..., Array]
    packed: Callable[..., Array]
    whole: Callable[..., Array]


class ContextNetworks(NamedTuple):
    """The networks of explore-then-execute.

    Attributes:
      problem: ``apply(params, task_id []) -> [CODE]``.
      decoder: of explorations.
      exploration: inputs ``obs [T, C]`` and the actions before them, plus one, 0 at the start, ``[T]``.
      execution: inputs ``obs [T, C]``, ``goal [G]`` and the code of the task ``[CODE]``.
    """

    problem: Network
    decoder: Decoder
    exploration: RecurrentQ
    execution: RecurrentQ


def dueling(heads: Heads, *, mean: Literal["state", "batch"] = "state") -> Array:
    """``Q = V + A - mean(A)``, ``[..., A]``.

    Args:
      heads: of any number of states.
      mean: "state" subtracts the mean over the actions of each state. "batch" subtracts one number, the mean over all
        states and actions given, as released: then a value depends on what else is in the batch.

    Raises:
      InputError: an unknown ``mean``.
    """
    if mean == "state":
        centre = jnp.mean(heads.advantage, axis=-1, keepdims=True)
    elif mean == "batch":
        centre = jnp.mean(heads.advantage, keepdims=True)
    else:
        raise unknown("dueling_mean", mean, ("state", "batch"))
    return heads.value[..., None] + heads.advantage - centre


def make_networks(
    obs_sizes: Sequence[int],
    goal_sizes: Sequence[int],
    *,
    num_actions: int,
    num_ids: int,
    recurrent: bool = False,
    look: Look | None = None,
    possible: Sequence[Sequence[int]] | None = None,
) -> ContextNetworks:
    """Returns the networks of DREAM.

    Args:
      obs_sizes: number of values of every component of an observation.
      goal_sizes: the same of an instruction.
      num_actions: ``A``.
      num_ids: tasks.
      recurrent: whether the execution policy has a memory: False is the first public version of the code, True the
        second, which the published results are of.
      look: how observations are seen as pictures; None: their numbers are embedded.
      possible: the observations that can be made, ``[S, C]``; None: all that ``obs_sizes`` allow. Of a batch with more
        steps each is embedded once.

    Source: Liu et al. 2021 (DREAM), appendix C, with the layers of the released code.
    """
    obs, goal, code = jnp.zeros((1, len(obs_sizes)), jnp.int32), jnp.zeros(len(goal_sizes), jnp.int32), jnp.zeros(CODE)
    actions, several = jnp.zeros(1, jnp.int32), jnp.zeros((2, len(obs_sizes)), jnp.int32)
    sizes: dict[str, Any] = {"obs_sizes": tuple(obs_sizes), "num_actions": num_actions, "look": look}
    sizes["possible"] = None if possible is None else tuple(tuple(each) for each in possible)
    start = (jnp.zeros(_MEMORY),) * 2
    return ContextNetworks(
        problem=_network(_ProblemEncoder(num_ids), jnp.zeros((), jnp.int32)),
        decoder=_decoder(TrajectoryDecoder(**sizes), several, actions),
        exploration=_policy(_ExplorationPolicy(**sizes), start, obs, actions),
        execution=_policy(
            _ExecutionPolicy(**sizes, goal_sizes=tuple(goal_sizes), recurrent=recurrent),
            start if recurrent else (),
            obs,
            goal,
            code,
        ),
    )


class TrajectoryDecoder(nn.Module):
    """What every prefix of a trajectory says about the task: an LSTM over embedded transitions.

    Attributes:
      obs_sizes: number of values of every component of an observation.
      num_actions: ``A``.
      look: as for `make_networks`.
      possible: likewise.
    """

    obs_sizes: Sequence[int]
    num_actions: int
    look: Look | None = None
    possible: Tuples | None = None

    def setup(self) -> None:
        """Names the layers."""
        self.state = state_embedder(self.obs_sizes, self.look, self.possible)
        self.action = nn.Embed(self.num_actions, EMBEDDED, embedding_init=nn.initializers.normal(1.0))
        self.transition = Linear((CODE, CODE, EMBEDDED), _DECODER_MEMORY)
        self.step = Linear((_DECODER_MEMORY,), CODE)
        self.memory = LSTM(CODE, _DECODER_MEMORY)
        self.read = Linear((_DECODER_MEMORY,), _DECODER_MEMORY)
        self.code = Linear((_DECODER_MEMORY,), CODE)

    def __call__(self, obs: Array, action: Array) -> Array:
        """Maps observations ``[..., T+1, C]`` and actions ``[..., T]`` to codes ``[..., T+1, CODE]``."""
        table, place = self.state.table(obs)
        hidden = self._transitions(table, place[..., :-1], place[..., 1:], action)
        known = self.memory(self.step(hidden))
        # Nothing has been seen before the first step: a memory of zeros.
        known = jnp.concatenate([jnp.zeros_like(known[..., :1, :]), known], axis=-2)
        return self.code(nn.relu(self.read(known)))

    def packed(self, obs: Array, action: Array, lengths: Array) -> Array:
        """The same for trajectories ``[B, ...]`` of some lengths ``[B]``, past whose ends codes are zero."""
        places = packing.pack(lengths, action.shape[1])
        known, rows = packing.with_empty(places, self._remembered(places, obs, action))
        return packing.spread_prefixes(places, self.code(nn.relu(self.read(known, rows)), rows))

    def whole(self, obs: Array, action: Array, lengths: Array) -> Array:
        """Maps the same to codes of whole trajectories ``[B, CODE]``."""
        places = packing.pack(lengths, action.shape[1])
        known, _ = packing.with_empty(places, self._remembered(places, obs, action))
        last = packing.row_of_prefix(places, lengths)
        return self.code(nn.relu(self.read(known[last])))

    def _remembered(self, places: Packing, obs: Array, action: Array) -> Array:
        """What is remembered after every step, in rows."""
        table, place = self.state.table(obs)
        before, after, action = (packing.take(places, x) for x in (place[:, :-1], place[:, 1:], action))
        hidden = self._transitions(table, before, after, action)
        return self.memory.packed(self.step(hidden, places.rows), places)

    def _transitions(self, table: Array, before: Array, after: Array, action: Array) -> Array:
        """First layer of transitions between rows of a table of states."""
        one, two, three = self.transition.apart(table, table, self.action.embedding)
        return nn.relu(look_up(one, before) + look_up(two, after) + three[action])


class _ProblemEncoder(nn.Module):
    num_ids: int

    @nn.compact
    def __call__(self, task_id: Array) -> Array:
        table = nn.Embed(self.num_ids, EMBEDDED, embedding_init=nn.initializers.normal(1.0), name="task")
        return Linear((EMBEDDED,), CODE, name="code")(table(task_id))


class _Dueling(nn.Module):
    num_actions: int

    @nn.compact
    def __call__(self, x: Array) -> Heads:
        value = Linear((CODE,), 1, name="value")(x)
        return Heads(value[..., 0], Linear((CODE,), self.num_actions, name="advantage")(x))


class _ExplorationPolicy(nn.Module):
    obs_sizes: Sequence[int]
    num_actions: int
    look: Look | None
    possible: Tuples | None

    def setup(self) -> None:
        self.state = state_embedder(self.obs_sizes, self.look, self.possible)
        self.previous = nn.Embed(self.num_actions + 1, _PREVIOUS_ACTION, embedding_init=nn.initializers.normal(1.0))
        self.torso = Linear((CODE, _PREVIOUS_ACTION), CODE)
        self.memory = LSTM(CODE, _MEMORY)
        self.heads = _Dueling(self.num_actions)

    def __call__(self, obs: Array, previous: Array) -> Heads:
        table, place = self.state.table(obs)
        return self.heads(self.memory(self._seen(table, place, previous)))

    def packed(self, obs: Array, previous: Array, lengths: Array) -> Heads:
        places = packing.pack(lengths, previous.shape[1])
        table, place = self.state.table(obs)
        seen = self._seen(table, packing.take(places, place), packing.take(places, previous))
        heads = self.heads(self.memory.packed(seen, places))
        return jax.tree.map(partial(packing.spread, places), heads)

    def step(self, hidden: Hidden, obs: Array, previous: Array) -> tuple[Hidden, Heads]:
        table, place = self.state.table(obs)
        hidden = self.memory.step(hidden, self._seen(table, place, previous))
        return hidden, self.heads(hidden[0])

    def embed(self, obs: Array) -> Array:
        return self.state(obs)

    def _seen(self, table: Array, place: Array, previous: Array) -> Array:
        """What the memory meets at rows of a table of states, after actions."""
        one, two = self.torso.apart(nn.relu(table), nn.relu(self.previous.embedding))
        return look_up(one, place) + two[previous]


class _ExecutionPolicy(nn.Module):
    obs_sizes: Sequence[int]
    num_actions: int
    goal_sizes: Sequence[int]
    recurrent: bool
    look: Look | None
    possible: Tuples | None

    def setup(self) -> None:
        self.state, self.goal = state_embedder(self.obs_sizes, self.look, self.possible), Embedder(self.goal_sizes)
        width = 2 * CODE
        if self.recurrent:
            self.torso = Linear((width,), CODE)
            self.memory = LSTM(CODE, _MEMORY)
            width = _MEMORY
        self.first, self.second = Linear((width, CODE), _HIDDEN), Linear((_HIDDEN,), CODE)
        self.heads = _Dueling(self.num_actions)

    def __call__(self, obs: Array, goal: Array, code: Array) -> Heads:
        seen = self._seen(obs, goal)
        return self._read(self.memory(seen) if self.recurrent else seen, code)

    def step(self, hidden: Hidden, obs: Array, goal: Array, code: Array) -> tuple[Hidden, Heads]:
        seen = self._seen(obs, goal)
        if self.recurrent:
            hidden = self.memory.step(hidden, seen)
            seen = hidden[0]
        return hidden, self._read(seen, code)

    def embed(self, obs: Array) -> Array:
        return self.state(obs)

    def values(self, x: Array, goal: Array, code: Array) -> Heads:
        return self._read(_beside(x, self.goal(goal)), code)

    def _seen(self, obs: Array, goal: Array) -> Array:
        joined = _beside(self.state(obs), self.goal(goal))
        return self.torso(nn.relu(joined)) if self.recurrent else joined

    def _read(self, seen: Array, code: Array) -> Heads:
        informed = _beside(seen, code)
        return self.heads(self.second(nn.relu(self.first(informed))))


def _network(module: nn.Module, *inputs: Array) -> Network:
    return Network(lambda key: module.init(key, *inputs), module.apply)


def _decoder(module: nn.Module, *inputs: Array) -> Decoder:
    method = partial(_method, module)
    return Decoder(lambda key: module.init(key, *inputs), method("__call__"), method("packed"), method("whole"))


def _policy(module: nn.Module, start: Hidden, *inputs: Array) -> RecurrentQ:
    method = partial(_method, module)
    return RecurrentQ(
        init=lambda key: module.init(key, *inputs),
        apply=method("__call__"),
        packed=method("packed"),
        step=method("step"),
        start=start,
        embed=method("embed"),
        values=method("values"),
    )


def _method(module: nn.Module, name: str) -> Callable[..., Any]:
    """A method of a module as a function of parameters and inputs."""
    return lambda params, *inputs: module.apply(params, *inputs, method=name)


def _beside(x: Array, constant: Array) -> Array:
    """Appends what does not change in a sequence, ``[..., Z]``, to its steps ``[..., T, X]``, or to one step."""
    if x.ndim > constant.ndim:
        constant = jnp.broadcast_to(constant[..., None, :], (*x.shape[:-1], constant.shape[-1]))
    return jnp.concatenate([x, constant], axis=-1)
