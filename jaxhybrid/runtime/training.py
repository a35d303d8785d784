"""Training runs: who trains which member where, and what a run leaves when it has ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import console, devices, lock, loop, parts, plots, policies, records
from jaxhybrid.runtime.members import Member, configured, members, swept
from jaxhybrid.runtime.options import RunOptions, checked, seeds
from jaxhybrid.types import Env, HostEnv, Setting, System

__all__ = ["train"]

_DIAGNOSED_PARTS = 4


def train(
    setting: Setting,
    *,
    study: str,
    preset: str,
    config: Any,
    options: RunOptions,
    iterations: int,
    num_steps: int | None = None,
    command: Sequence[str] | None = None,
) -> loop.RunResult:
    """Trains every member of a run and leaves a directory that says everything about it; see `runtime.loop.run`.

    Several members run side by side in one program, or each in a process of its own (`runtime.parts`). As one of
    several processes of a cluster's job it trains this process's share of them, or of the batches of the only one.

    Args:
      setting: the system and its environment.
      study: name of the system; where `jaxhybrid.systems` has one of this name, failures replay and policies are read
        back through its ``setting``.
      preset: name of the config that ``config`` started from; it only labels the run.
      config: frozen dataclass of the system's numbers.
      options: how to run.
      iterations: to run, unless ``options.iterations`` says otherwise, or did when a run that is resumed was last
        started.
      num_steps: steps per iteration and instance of a `HostEnv`.
      command: the command line that started this run; several seeds can run in processes of their own only with it.

    Returns:
      The last state and the exit code.

    Raises:
      InputError: bad options, a directory that may not be written or resumed, several seeds on a host environment
        without a command. Nothing was written then.
    """
    make, env = setting.make, setting.env
    options = _continued(checked(options))
    if options.diagnose:
        config = _diagnosed(config)
    total = options.iterations or iterations
    group = members(options, config)
    # Every number of a sweep is checked here, before anything is traced or written.
    systems = [make(configured(config, member.numbers), env) for member in group[:: len(seeds(options))]]
    _check(env, options, total, num_steps)
    apart = parts.in_processes(options, env, group, command)
    if not apart:
        devices.placement(options, len(group))
    directory = _directory(options, study, env.spec.name, preset)
    identity = _identity(study, env, config, options, num_steps, "processes" if apart else "vmap")
    console.quiet_dependencies()
    title = f"{study} {preset}"

    def system_fn(numbers: Mapping[str, Any]) -> System:
        return make(configured(config, numbers), env) if numbers else systems[0]

    if devices.is_first():
        records.open_run(directory, identity, dataclasses.asdict(options), resume=options.resume)
    devices.barrier("the directory is open")
    try:
        if apart:
            if not options.quiet:
                jobs = options.jobs or len(parts.cores())
                console.say(f"{directory}: {len(group)} processes, at most {jobs} at a time")
            done, exit_code = parts.run(directory, options, group, command or (), total)
            _draw(directory, identity, title)
            return loop.RunResult(directory, None, done, exit_code)
        result = loop.run(
            system_fn,
            env,
            group,
            directory=directory,
            identity=identity,
            options=options,
            total=total,
            num_steps=num_steps,
        )
        _finish(result, identity, group, title, setting)
        return result
    finally:
        lock.release(directory)


def _finish(
    result: loop.RunResult,
    identity: Mapping[str, Any],
    group: Sequence[Member],
    title: str,
    setting: Setting,
) -> None:
    """Draws the curve and keeps the policy."""
    kept = setting.policy_params
    params = None if kept is None else devices.fetched(kept(result.state))
    if not devices.is_first():
        return
    _draw(result.directory, identity, title)
    if result.exit_code == 0 and params is not None:
        policies.save(
            result.directory / "policy",
            params=params,
            study=identity["study"],
            config=identity["config"],
            spec=setting.env.spec,
            seeds=[member.seed for member in group],
            iteration=result.iteration,
            numbers=[member.numbers for member in group],
        )


def _continued(options: RunOptions) -> RunOptions:
    """Options with the iterations that a resumed run was last to do, unless others are asked for."""
    if not options.resume or options.out is None or options.iterations is not None:
        return options
    return checked(dataclasses.replace(options, iterations=records.iterations(Path(options.out).expanduser())))


def _diagnosed(config: Any) -> Any:
    if not hasattr(config, "diagnose_parts"):
        raise InputError("diagnose: this study has no diagnosis; leave the option out.")
    return dataclasses.replace(config, diagnose_parts=config.diagnose_parts or _DIAGNOSED_PARTS)


def _identity(
    study: str, env: Env | HostEnv, config: Any, options: RunOptions, num_steps: int | None, parallel: str
) -> dict[str, Any]:
    """Everything that decides the numbers of a run; a resumed run must agree in it."""
    return {
        "study": study,
        "env": env.spec.name,
        "config": dataclasses.asdict(config),
        "num_steps": num_steps,
        "seeds": list(seeds(options)),
        "sweep": swept(options, config),
        "parallel": parallel,
        **{name: getattr(options, name) for name in ("chunk", "eval_every", "eval_episodes")},
    }


def _check(env: Env | HostEnv, options: RunOptions, total: int, num_steps: int | None) -> None:
    if total % options.chunk:
        raise InputError(f"iterations={total} must be a multiple of chunk={options.chunk}.")
    if not isinstance(env, HostEnv):
        return
    if num_steps is None or num_steps < 1:
        raise InputError(f"num_steps={num_steps} must be at least 1 on the host environment {env.spec.name!r}.")
    for name, wanted in (("data_parallel", options.data_parallel), ("distributed", jax.process_count() > 1)):
        if wanted:
            raise InputError(f"{name} is not possible on {env.spec.name!r}, which runs on the host.")
    if options.chunk > 1:
        raise InputError(
            f"chunk={options.chunk} must be 1 on {env.spec.name!r}, which runs outside the compiled program."
        )


def _directory(options: RunOptions, study: str, env: str, preset: str) -> Path:
    if options.out is not None:
        return Path(options.out).expanduser()
    return records.default_directory(study, env, preset, seeds(options)[0])


def _draw(directory: Path, identity: Mapping[str, Any], label: str) -> None:
    try:
        plots.learning_curves({label: records.read(directory)}, directory / "curve.png", title=identity["env"])
    except (InputError, OSError) as reason:
        console.warn(f"curve.png was not drawn: {reason}")
