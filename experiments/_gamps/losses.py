"""Losses of the state-independent effect model, as exact expectations, and the policies that their values lead to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxhybrid.envs import finite, gridworld
from jaxhybrid.ops import trees
from jaxhybrid.policies import tabular_softmax
from jaxhybrid.transition_models import effect_transition
from jaxhybrid.types import Array, Key

if TYPE_CHECKING:
    from experiments.gamps_losses import Config

__all__ = ["LOSSES", "Curves", "compare", "draw", "summary"]

LOSSES = ("true gradient", "gradient-aware", "own score", "likelihood", "value-aware", "gradient matching")
_GAMMA = 0.95


class Curves(NamedTuple):
    """What one loss led to on one layout: returns and cosines with the true gradient, ``[S, K]`` each."""

    returns: np.ndarray
    cosines: np.ndarray


class _World(NamedTuple):
    problem: finite.Problem
    grid: gridworld.Layout
    probs_fn: finite.ProbsFn
    init: Callable[[Key], Array]

    def model(self, logits: Array) -> Array:
        """Transitions of the effect model; that the goal is the end is known."""
        transition = effect_transition(jax.nn.softmax(logits), self.grid.moves)
        return transition.at[self.grid.goal].set(self.problem.transition[self.grid.goal])


def _world(topology: str) -> _World:
    grid = gridworld.layout(topology)
    policy = tabular_softmax(grid.fixed_action, 4)

    def probs_fn(params: Array) -> Array:
        return jax.vmap(lambda s: policy.apply(params, s).probs())(jnp.arange(len(grid.start)))

    return _World(gridworld.problem(topology, gamma=_GAMMA), grid, probs_fn, policy.init)


def _model_loss(world: _World, kind: str, theta: Array, previous: Array) -> Callable[[Array], Array]:
    """Returns the loss of the effect logits; everything but the model is a constant of it."""
    problem, probs = world.problem, world.probs_fn(theta)
    visits = finite.occupancy(problem, probs)
    if kind == "gradient matching":
        truth = finite.policy_gradient(problem, world.probs_fn, theta)
        scale = trees.dot(truth, truth)

        def mismatch(logits: Array) -> Array:
            error = finite.model_value_gradient(problem, world.model(logits), world.probs_fn, theta) - truth
            return jnp.sum(jnp.square(error)) / scale

        return mismatch
    if kind == "value-aware":
        value = finite.state_values(problem._replace(transition=world.model(previous)), probs)

        def bellman_error(logits: Array) -> Array:
            error = (world.model(logits) - problem.transition) @ value
            return jnp.sum(visits * jnp.square(error))

        return bellman_error
    norms = finite.score_norms(world.probs_fn, theta)
    weights = {
        "likelihood": lambda: visits,
        "own score": lambda: visits * norms / jnp.sum(visits * norms),
        "gradient-aware": lambda: finite.gradient_aware_distribution(problem, probs, norms)[0],
    }[kind]()
    return lambda logits: jnp.sum(weights * finite.kl_divergence(problem.transition, world.model(logits)))


def _run(world: _World, kind: str, config: Config, key: Key) -> tuple[Array, Array]:
    policy_optimiser, model_optimiser = optax.adam(0.1), optax.adam(0.3)

    def improve(carry: tuple, _: None) -> tuple[tuple, tuple[Array, Array]]:
        theta, state, logits = carry
        truth = finite.policy_gradient(world.problem, world.probs_fn, theta)
        gradient = truth
        if kind != "true gradient":
            loss = _model_loss(world, kind, theta, logits)

            def fit(inner: tuple, _: None) -> tuple[tuple, None]:
                updates, inner_state = model_optimiser.update(jax.grad(loss)(inner[0]), inner[1])
                return (inner[0] + updates, inner_state), None

            (logits, _), _ = jax.lax.scan(fit, (logits, model_optimiser.init(logits)), None, length=config.fit_steps)
            gradient = finite.model_value_gradient(world.problem, world.model(logits), world.probs_fn, theta)
        value = finite.expected_return(world.problem, world.probs_fn(theta))
        updates, state = policy_optimiser.update(-gradient, state)
        return (theta + updates, state, logits), (value, trees.cosine(gradient, truth))

    theta = world.init(key)
    start = (theta, policy_optimiser.init(theta), jnp.zeros((4, len(gridworld.EFFECTS))))
    return jax.lax.scan(improve, start, None, length=config.iterations + 1)[1]


def compare(config: Config, seed: int) -> dict[tuple[str, str], Curves]:
    """Returns the curves of every layout and loss, all seeds side by side, float64 as the finite problems like it."""
    found = {}
    with jax.enable_x64(True):
        keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + config.seeds))
        for topology in ("two_areas", "literal"):
            world = _world(topology)
            for kind in LOSSES:
                run = jax.jit(jax.vmap(lambda k, world=world, kind=kind: _run(world, kind, config, k)))
                found[topology, kind] = Curves(*map(np.asarray, run(keys)))
    return found


def summary(curves: Mapping[tuple[str, str], Curves]) -> Sequence[dict[str, Any]]:
    """Returns means over seeds: the first cosine, the final and the best return."""
    return [
        {
            "topology": topology,
            "loss": kind,
            "seeds": len(found.returns),
            "first_cosine": float(found.cosines[:, 0].mean()),
            "final": float(found.returns[:, -1].mean()),
            "final_std": float(found.returns[:, -1].std()),
            "best": float(found.returns.max(axis=1).mean()),
        }
        for (topology, kind), found in curves.items()
    ]


def draw(curves: Mapping[tuple[str, str], Curves], path: Path) -> None:
    """Draws the mean return over policy updates, a panel per layout."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11.0, 4.8), layout="constrained", sharey=True)
    # Okabe and Ito's colours.
    colours = dict(zip(LOSSES, ("0.35", "#009E73", "#56B4E9", "#D55E00", "#E69F00", "#CC79A7")))
    dashes = dict(zip(LOSSES, (":", "-", "--", "-.", (0, (5, 1)), (0, (1, 1)))))
    for panel, (topology, title) in zip(panels, (("two_areas", "two areas"), ("literal", "literal layout"))):
        for kind in LOSSES:
            mean = curves[topology, kind].returns.mean(axis=0)
            panel.plot(mean, color=colours[kind], linestyle=dashes[kind], label=kind)
        panel.set_title(title)
        panel.set_xlabel("policy updates")
        panel.grid(True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("expected discounted return")
    seeds = len(next(iter(curves.values())).returns)
    figure.suptitle(f"The same small model under five losses, exact expectations, mean of {seeds} starts")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=len(labels))
    figure.savefig(path, dpi=100)
    plt.close(figure)
