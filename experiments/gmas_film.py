"""One test episode of a trained GMAS as an animation, with the plan of every step drawn into the maze.

``python -m experiments gmas_film --run runs/a``: takes a finished run of ``python -m experiments gmas`` on mazes and
writes episode.gif and episode.json into its directory. The line starts at the agent and follows the best action of the
tree, then that of the tree which is one step less deep from the state that the model predicts, and so on.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, outputs

_ZOOM = 8
_SECONDS = 0.4  # per step
_PLAN_COLOUR = (213, 94, 0)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is filmed."""

    run: str
    """Directory of a finished run."""
    seed: int | None = None
    """Which of its seeds; by default the first."""
    maze: int = 0
    """Which start; equal numbers are equal mazes."""
    depth: int | None = None
    """Planning depth; by default that of the run."""
    out: str = "episode"
    """Name of the two files in the directory of the run; existing ones are not touched."""


def main(argv: Sequence[str]) -> int:
    """Draws the film; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no finished run on mazes, numbers that make no sense, or a file that exists; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments gmas_film", description=__doc__)
    directory = Path(arguments.run).expanduser()
    path, record = (outputs.new_file(str(directory / f"{arguments.out}.{ending}")) for ending in ("gif", "json"))
    if min(arguments.maze, 0 if arguments.depth is None else arguments.depth) < 0:
        raise InputError(f"maze={arguments.maze} and depth={arguments.depth} must not be negative.")
    from experiments._gmas import trained
    from jaxhybrid.runtime import films

    agent = trained.load(arguments.run, arguments.seed)
    if agent.test_env.spec.name != "maze":
        raise InputError(f"run={arguments.run!r} is on {agent.test_env.spec.name!r}: only mazes are drawn here.")
    depth = agent.config.plan_depth if arguments.depth is None else arguments.depth
    steps = _play(agent, arguments.maze, depth)
    path.write_bytes(films.gif([_frame(step) for step in steps], _SECONDS))
    # The last picture shows where the episode ended, and no plan.
    facts = {"depth": depth, "actions": [step["plan"][0] for step in steps[:-1]], "return": steps[-1]["total"]}
    record.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    console.say(f"return {facts['return']:.1f} in {len(facts['actions'])} steps, depth {depth}; drawn in {path}")
    return 0


def _play(agent: Any, index: int, depth: int) -> list[dict[str, Any]]:
    """Pictures, plans as actions, and returns so far, of one episode; the last entry is its end."""
    import jax
    import jax.numpy as jnp

    from jaxhybrid.envs import maze
    from jaxhybrid.planning import tree
    from jaxhybrid.systems import gmas_updates

    nets, params, env = agent.parts.acting, agent.params, agent.test_env

    def plan(obs: Any) -> list[Any]:
        z, actions = nets.encoder.apply(params["encoder"], obs), []
        for left in range(depth, -1, -1):
            values = gmas_updates.plan(
                nets, params, params["critic"], z, depth=left, branching=agent.config.plan_branching
            )
            actions.append(jnp.argmax(tree.plan_q(values)))
            z = nets.dynamics.apply(params["dynamics"], z, actions[-1])
        return actions

    planned, step = jax.jit(plan), jax.jit(env.step)
    state, obs = env.reset(jax.random.key(index))
    total, seen = 0.0, []
    for _ in range(env.spec.max_episode_steps):
        actions = [int(a) for a in planned(obs)]
        seen.append({"picture": np.asarray(maze.render(obs)), "state": state, "plan": actions, "total": total})
        state, time_step = step(state, jnp.asarray(actions[0]), jax.random.key(0))
        obs, total = time_step.obs, total + float(time_step.reward)
        if time_step.terminated:
            break
    return [*seen, {"picture": np.asarray(maze.render(obs)), "state": state, "plan": [], "total": total}]


def _frame(step: dict[str, Any]) -> np.ndarray:
    """One picture ``[H, W, 3]``: the maze, the plan as a line, the return so far."""
    from PIL import Image, ImageDraw

    from jaxhybrid.envs import maze

    grey = (127.5 * (step["picture"] + 1.0)).astype(np.uint8)
    image = Image.fromarray(255 - np.kron(grey, np.ones((_ZOOM, _ZOOM), np.uint8))).convert("RGB")
    block = _ZOOM * len(grey) // len(step["state"].walls)
    draw, place = ImageDraw.Draw(image), np.asarray(step["state"].position)
    line = [place]
    for action in step["plan"]:
        ahead = line[-1] + np.array(maze.MOVES[action])
        line.append(line[-1] if step["state"].walls[tuple(ahead)] else ahead)
    points = [tuple(int(x) for x in block * cell[::-1] + block // 2) for cell in line]
    draw.line(points, fill=_PLAN_COLOUR, width=_ZOOM // 2)
    for x, y in points[1:]:
        draw.ellipse((x - _ZOOM, y - _ZOOM, x + _ZOOM, y + _ZOOM), fill=_PLAN_COLOUR)
    draw.text((4, 4), f"return {step['total']:.1f}", fill=(255, 255, 255))
    return np.asarray(image)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
