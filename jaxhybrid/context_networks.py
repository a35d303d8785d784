"""Networks that find out which task they are in: encoder of its number, decoder of what was seen, two kinds of policy.

Observations are tuples of small integers. The first layer on an embedded integer is a table with a row per value, so
that the whole layer is one product with the indicators of the values: exact, and a tenth of the arithmetic. Sequences
may have any leading axes: a batch as one array lets the memory take the gradient of its weights in one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhybrid.errors import unknown
from jaxhybrid.networks import Network
from jaxhybrid.ops import memory
from jaxhybrid.types import Array, Key, PyTree

__all__ = [
    "CODE",
    "LSTM",
    "ContextNetworks",
    "Embedder",
    "Heads",
    "Look",
    "PictureEmbedder",
    "RecurrentQ",
    "TrajectoryDecoder",
    "dueling",
    "make_networks",
]

CODE = 64
"""Numbers that describe a task."""
_EMBEDDED, _HIDDEN, _MEMORY, _DECODER_MEMORY = 32, 256, 64, 128
_PREVIOUS_ACTION = 16

Hidden = tuple[Array, ...]


class Heads(NamedTuple):
    """Value ``[...]`` and advantages ``[..., A]`` of states."""

    value: Array
    advantage: Array


class Look(NamedTuple):
    """Observations as pictures.

    Attributes:
      draw: ``draw(obs [C]) -> picture``.
      encoder: ``apply(params, picture) -> [CODE]``.
    """

    draw: Callable[[Array], Array]
    encoder: Network


class RecurrentQ(NamedTuple):
    """A policy by values over a sequence of observations.

    Attributes:
      init: ``init(key) -> params``.
      apply: ``apply(params, *inputs) -> Heads`` of every step of a sequence, or of many, ``[..., T]``.
      step: ``step(params, hidden, *inputs) -> (hidden, Heads)`` of one step of the same sequence.
      start: the hidden state before the first step; empty where there is no memory.
      embed: ``embed(params, obs [C]) -> [X]``, what the policy makes of an observation before anything else.
      values: ``values(params, x [X], *others) -> Heads`` of an embedded observation; only without a memory.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[..., Heads]
    step: Callable[..., tuple[Hidden, Heads]]
    start: Hidden
    embed: Callable[[PyTree, Array], Array]
    values: Callable[..., Heads]


class ContextNetworks(NamedTuple):
    """The networks of explore-then-execute.

    Attributes:
      problem: ``apply(params, task_id []) -> [CODE]``.
      decoder: ``apply(params, obs [T+1, C], action [T]) -> [T+1, CODE]``, one code for every prefix of the trajectory;
        the first knows nothing.
      exploration: inputs ``obs [T, C]`` and the actions before them, plus one, 0 at the start, ``[T]``.
      execution: inputs ``obs [T, C]``, ``goal [G]`` and the code of the task ``[CODE]``.
    """

    problem: Network
    decoder: Network
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

    Source: Liu et al. 2021 (DREAM), appendix C, with the layers of the released code.
    """
    obs, goal, code = jnp.zeros((1, len(obs_sizes)), jnp.int32), jnp.zeros(len(goal_sizes), jnp.int32), jnp.zeros(CODE)
    actions, several = jnp.zeros(1, jnp.int32), jnp.zeros((2, len(obs_sizes)), jnp.int32)
    sizes: dict[str, Any] = {"obs_sizes": tuple(obs_sizes), "num_actions": num_actions, "look": look}
    start = (jnp.zeros(_MEMORY),) * 2
    return ContextNetworks(
        problem=_network(_ProblemEncoder(num_ids), jnp.zeros((), jnp.int32)),
        decoder=_network(TrajectoryDecoder(**sizes), several, actions),
        exploration=_policy(_ExplorationPolicy(**sizes), start, obs, actions),
        execution=_policy(
            _ExecutionPolicy(**sizes, goal_sizes=tuple(goal_sizes), recurrent=recurrent),
            start if recurrent else (),
            obs,
            goal,
            code,
        ),
    )


class Embedder(nn.Module):
    """Maps a tuple of integers ``[..., C]`` to ``[..., out]``: a table for each, a hidden layer, a linear one.

    Attributes:
      sizes: number of values of every component.
      out: width of the output.
    """

    sizes: Sequence[int]
    out: int = CODE

    @nn.compact
    def __call__(self, values: Array) -> Array:
        """Embeds every tuple."""
        rows = []
        for i, size in enumerate(self.sizes):
            table = self.param(f"table_{i}", nn.initializers.normal(1.0), (size, _EMBEDDED))
            kernel = self.param(f"kernel_{i}", _uniform(_EMBEDDED * len(self.sizes)), (_EMBEDDED, _HIDDEN))
            rows.append(table @ kernel)
        bias = self.param("bias", _uniform(_EMBEDDED * len(self.sizes)), (_HIDDEN,))
        hot = [jax.nn.one_hot(values[..., i], size) for i, size in enumerate(self.sizes)]
        first = jnp.concatenate(hot, axis=-1) @ jnp.concatenate(rows)
        return _linear(_HIDDEN, self.out)(nn.relu(_shifted(first, bias)))


class PictureEmbedder(nn.Module):
    """What `Embedder` is, for observations that are looked at: a picture is drawn of each and encoded.

    Of many observations every possible one is encoded once, and looked up: exact, and less work than a picture each.

    Attributes:
      sizes: number of values of every component.
      look: pictures and their encoder.
    """

    sizes: Sequence[int]
    look: Look

    @nn.compact
    def __call__(self, values: Array) -> Array:
        """Embeds every tuple."""
        encoder = self.param("picture", self.look.encoder.init)
        encode = jax.vmap(lambda obs: self.look.encoder.apply(encoder, self.look.draw(obs)))
        count = math.prod(self.sizes)
        if values.size // len(self.sizes) <= count:
            rows = encode(values.reshape(-1, len(self.sizes)))
            return rows.reshape(*values.shape[:-1], rows.shape[-1])
        every = jnp.stack(jnp.unravel_index(jnp.arange(count), tuple(self.sizes)), axis=-1)
        place = jnp.ravel_multi_index(tuple(jnp.moveaxis(values, -1, 0)), tuple(self.sizes), mode="clip")
        # A product with indicators: a CPU is slow at adding gradients to rows.
        return jax.nn.one_hot(place, count) @ encode(every)


def _state_embedder(sizes: Sequence[int], look: Look | None, name: str | None = None) -> nn.Module:
    return Embedder(sizes, name=name) if look is None else PictureEmbedder(sizes, look, name=name)


class LSTM(nn.Module):
    """Long short-term memory over sequences ``[..., T, I] -> [..., T, width]``, from a state of zeros.

    Attributes:
      inputs: ``I``.
      width: of the state.
    """

    inputs: int
    width: int

    def setup(self) -> None:
        """Names the layers."""
        self.project = _linear(self.inputs, 4 * self.width, fan=self.width)
        self.kernel = self.param("kernel", _uniform(self.width), (self.width, 4 * self.width))

    def __call__(self, x: Array) -> Array:
        """Returns the output after every input."""
        return memory.lstm(self.project(x), self.kernel)

    def step(self, hidden: Hidden, x: Array) -> Hidden:
        """Returns output and cell after one more input ``[I]``."""
        output, cell = hidden
        return memory.advance(output, cell, self.project(x), self.kernel)


class TrajectoryDecoder(nn.Module):
    """What every prefix of a trajectory says about the task: an LSTM over embedded transitions.

    Attributes:
      obs_sizes: number of values of every component of an observation.
      num_actions: ``A``.
      look: as for `make_networks`.
    """

    obs_sizes: Sequence[int]
    num_actions: int
    look: Look | None = None

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        """Maps observations ``[..., T+1, C]`` and actions ``[..., T]`` to codes ``[..., T+1, CODE]``."""
        states = _state_embedder(self.obs_sizes, self.look, "state")(obs)
        actions = nn.Embed(self.num_actions, _EMBEDDED, embedding_init=nn.initializers.normal(1.0), name="action")
        joined = jnp.concatenate([states[..., :-1, :], states[..., 1:, :], actions(action)], axis=-1)
        hidden = nn.relu(_linear(joined.shape[-1], _DECODER_MEMORY, name="transition")(joined))
        steps = _linear(_DECODER_MEMORY, CODE, name="step")(hidden)
        known = LSTM(CODE, _DECODER_MEMORY, name="memory")(steps)
        # Nothing has been seen before the first step: a memory of zeros.
        known = jnp.concatenate([jnp.zeros_like(known[..., :1, :]), known], axis=-2)
        return _linear(_DECODER_MEMORY, CODE, name="code")(
            nn.relu(_linear(_DECODER_MEMORY, _DECODER_MEMORY, name="read")(known))
        )


class _ProblemEncoder(nn.Module):
    num_ids: int

    @nn.compact
    def __call__(self, task_id: Array) -> Array:
        table = nn.Embed(self.num_ids, _EMBEDDED, embedding_init=nn.initializers.normal(1.0), name="task")
        return _linear(_EMBEDDED, CODE, name="code")(table(task_id))


class _Dueling(nn.Module):
    num_actions: int

    @nn.compact
    def __call__(self, x: Array) -> Heads:
        value = _linear(CODE, 1, name="value")(x)
        return Heads(value[..., 0], _linear(CODE, self.num_actions, name="advantage")(x))


class _ExplorationPolicy(nn.Module):
    obs_sizes: Sequence[int]
    num_actions: int
    look: Look | None

    def setup(self) -> None:
        self.state = _state_embedder(self.obs_sizes, self.look)
        self.previous = nn.Embed(self.num_actions + 1, _PREVIOUS_ACTION, embedding_init=nn.initializers.normal(1.0))
        self.torso = _linear(CODE + _PREVIOUS_ACTION, CODE)
        self.memory = LSTM(CODE, _MEMORY)
        self.heads = _Dueling(self.num_actions)

    def __call__(self, obs: Array, previous: Array) -> Heads:
        return self.heads(self.memory(self._seen(obs, previous)))

    def step(self, hidden: Hidden, obs: Array, previous: Array) -> tuple[Hidden, Heads]:
        hidden = self.memory.step(hidden, self._seen(obs, previous))
        return hidden, self.heads(hidden[0])

    def embed(self, obs: Array) -> Array:
        return self.state(obs)

    def _seen(self, obs: Array, previous: Array) -> Array:
        return self.torso(nn.relu(jnp.concatenate([self.state(obs), self.previous(previous)], axis=-1)))


class _ExecutionPolicy(nn.Module):
    obs_sizes: Sequence[int]
    num_actions: int
    goal_sizes: Sequence[int]
    recurrent: bool
    look: Look | None

    def setup(self) -> None:
        self.state, self.goal = _state_embedder(self.obs_sizes, self.look), Embedder(self.goal_sizes)
        width = 2 * CODE
        if self.recurrent:
            self.torso = _linear(width, CODE)
            self.memory = LSTM(CODE, _MEMORY)
            width = _MEMORY
        self.first, self.second = _linear(width + CODE, _HIDDEN), _linear(_HIDDEN, CODE)
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


def _policy(module: nn.Module, start: Hidden, *inputs: Array) -> RecurrentQ:
    def method(name: str) -> Callable[..., Any]:
        return lambda params, *inputs: module.apply(params, *inputs, method=name)

    return RecurrentQ(
        init=lambda key: module.init(key, *inputs),
        apply=method("__call__"),
        step=method("step"),
        start=start,
        embed=method("embed"),
        values=method("values"),
    )


def _linear(inputs: int, out: int, *, fan: int | None = None, name: str | None = None) -> nn.Dense:
    """A linear layer whose weights and biases are uniform within ``1 / sqrt(fan)``, by default of its inputs."""
    init = _uniform(fan or inputs)
    return nn.Dense(out, kernel_init=init, bias_init=init, name=name)


def _uniform(fan: int) -> Any:
    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan**-0.5), fan**-0.5)

    return init


def _beside(x: Array, constant: Array) -> Array:
    """Appends what does not change in a sequence, ``[..., Z]``, to its steps ``[..., T, X]``, or to one step."""
    if x.ndim > constant.ndim:
        constant = jnp.broadcast_to(constant[..., None, :], (*x.shape[:-1], constant.shape[-1]))
    return jnp.concatenate([x, constant], axis=-1)


def _shifted(x: Array, bias: Array) -> Array:
    return x + bias.reshape((1,) * (x.ndim - 1) + bias.shape)
