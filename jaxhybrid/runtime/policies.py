"""A trained policy as a directory that explains itself: ``policy.json`` and ``params.npz``, without pickles.

``policy.json`` holds the study, the config, the network, the environment's facts, the versions, the shape of every
parameter and the SHA-256 of the arrays; nothing of this library is needed to read either file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid import envs, networks
from jaxhybrid.errors import InputError
from jaxhybrid.policies import filtered, mlp_gaussian
from jaxhybrid.runtime import policy_files as files
from jaxhybrid.runtime import settings
from jaxhybrid.runtime.records import jsonable
from jaxhybrid.types import Array, Env, EnvSpec, HostEnv, Key, PyTree, Setting

__all__ = ["SavedPolicy", "act_fn", "environment", "export", "join", "load", "members", "of_run", "of_seed", "save"]

_PACKAGES = ("jaxhybrid", "jax", "flax", "numpy")
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class SavedPolicy(NamedTuple):
    """A policy read back.

    Attributes:
      params: nested dict of NumPy arrays; with a leading axis ``S`` when there are several ``seeds``.
      study: the study that trained it.
      config: numbers of the system, as JSON.
      spec: facts about the environment, as JSON; the actions of the policy lie within its action bounds.
      network: kind, hidden widths, activation and squash or limit; None when only the study knows it.
      normaliser: mean and std of the observations, ``[D]`` each; None when the policy sees them as they are.
      seeds: training seeds.
      facts: whatever else was saved.
      versions: of the packages that saved it.
    """

    params: PyTree
    study: str
    config: dict[str, Any]
    spec: dict[str, Any]
    network: dict[str, Any] | None
    normaliser: dict[str, Any] | None
    seeds: list[int]
    facts: dict[str, Any]
    versions: dict[str, Any]


def save(
    directory: Path | str,
    *,
    params: PyTree,
    study: str,
    config: Mapping[str, Any],
    spec: EnvSpec,
    seeds: list[int],
    network: Mapping[str, Any] | None = None,
    normaliser: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """Writes a policy.

    Args:
      directory: to create; files of an earlier policy in it are replaced.
      params: nested dicts of arrays with string names.
      study: name of the study.
      config: numbers of the system.
      spec: of the environment it was trained on.
      seeds: training seeds.
      network: ``kind="gaussian"``, ``hidden``, ``activation`` and ``squash`` of `networks.gaussian_policy`; or
        ``kind="filtered_gaussian"``, ``hidden``, ``activation`` and ``limit`` of `jaxhybrid.policies.mlp_gaussian`
        behind `jaxhybrid.policies.filtered`. By default what the config says of it in the names of `systems.maac` or
        `systems.mscv`, if it does.
      normaliser: ``mean`` and ``std`` ``[D]``: the network sees ``(obs - mean) / std``.
      **facts: anything else worth keeping that JSON can hold, such as the iteration.

    Returns:
      The directory.

    Raises:
      InputError: ``params`` is not made of dicts and numeric arrays, or is not finite; or ``network`` or ``normaliser``
        makes no sense; nothing was written then. Or the disk cannot be written.
    """
    facts_of_spec = {name: jsonable(getattr(spec, name)) for name in files.SPEC}
    known = jsonable(network) if network is not None else _network(jsonable(config), facts_of_spec)
    policy = SavedPolicy(
        params, study, jsonable(config), facts_of_spec, known, jsonable(normaliser), seeds, jsonable(facts), _versions()
    )
    return _write(Path(directory), policy)


def join(directory: Path | str, each: Sequence[Path], **facts: Any) -> Path:
    """Writes several policies of one study as one, with a leading axis ``S`` on every parameter for all their seeds.

    Args:
      directory: to create.
      each: directories of policies, of one seed or of several.
      **facts: that replace those of the first policy.

    Returns:
      The directory.

    Raises:
      InputError: a policy cannot be read, or their parameters differ in shape.
    """
    policies = [load(path) for path in each]
    arrays = [_with_seed_axis(policy) for policy in policies]
    shapes = [{name: array.shape[1:] for name, array in flat.items()} for flat in arrays]
    if any(shape != shapes[0] for shape in shapes):
        raise InputError(f"{str(directory)!r}: the policies to join have parameters of different shapes.")
    params = files.nested({name: np.concatenate([flat[name] for flat in arrays]) for name in arrays[0]})
    seeds = [seed for policy in policies for seed in policy.seeds]
    first = policies[0]
    return _write(Path(directory), first._replace(params=params, seeds=seeds, facts=first.facts | jsonable(facts)))


def load(directory: Path | str) -> SavedPolicy:
    """Reads a policy back and verifies it.

    Args:
      directory: from `save`.

    Raises:
      InputError: a file is missing, too large, unreadable, changed, or does not describe what it holds; the message
        names the file and the field.
    """
    directory = Path(directory)
    description, arrays = files.read(directory)
    if description["format"] == 1:
        description["network"] = _network(description["config"], description["spec"])
        files.check_network(directory / files.FACTS, description["network"], description["spec"]["action_dim"])
    kept = {name: description[name] for name in SavedPolicy._fields if name != "params"}
    policy = SavedPolicy(params=files.nested(arrays), **kept)
    _check_shapes(directory / files.FACTS, policy, description["params"])
    return policy


def of_run(directory: Path | str) -> SavedPolicy:
    """Reads the policy of a run, or of a directory that is one itself.

    Raises:
      InputError: there is none, or as for `load`.
    """
    directory = Path(directory).expanduser()
    places = [directory / "policy", directory]
    found = next((place for place in places if (place / files.FACTS).exists()), None)
    if not directory.exists():
        raise InputError(f"run={str(directory)!r} does not exist: name the directory of a run or of a policy.")
    if found is None:
        raise InputError(
            f"run={str(directory)!r} has no policy, which a run saves when it is complete: name another, or continue "
            "this one with --resume."
        )
    return load(found)


def members(policy: SavedPolicy) -> list[SavedPolicy]:
    """Returns the policy of every member of a run: of each seed, and of a sweep with each of its numbers in ``config``.

    Args:
      policy: of any seeds.
    """
    count, numbers = len(policy.seeds), policy.facts.get("numbers")
    if not (isinstance(numbers, list) and len(numbers) == count and all(isinstance(each, dict) for each in numbers)):
        numbers = [{}] * count
    arrays = [policy.params] if count == 1 else [jax.tree.map(lambda x, i=i: x[i], policy.params) for i in range(count)]
    return [
        policy._replace(
            params=params, config=policy.config | own, seeds=[seed], facts=policy.facts | {"numbers": [own]}
        )
        for params, own, seed in zip(arrays, numbers, policy.seeds, strict=True)
    ]


def of_seed(policy: SavedPolicy, seed: int | None = None) -> SavedPolicy:
    """Returns the policy of one training seed, by default the first; of a sweep, the one with its first numbers.

    Raises:
      InputError: it was not trained with that seed.
    """
    seed = policy.seeds[0] if seed is None else seed
    if seed not in policy.seeds:
        raise InputError(f"seed={seed} was not trained: choose one of {', '.join(map(str, policy.seeds))}.")
    return next(member for member in members(policy) if member.seeds == [seed])


def act_fn(policy: SavedPolicy) -> Callable[..., Array]:
    """Returns ``act(obs [D], key, *, deterministic) -> action [A]``, pure, for one observation.

    Where the policy does not describe its network, the system of its study acts, on the observations and with the
    actions of that system; its environment is made for that.

    Args:
      policy: of one seed.

    Raises:
      InputError: it is of several seeds, its network is not known, or not the one that its study makes.
    """
    return _actor(policy)[0]


def _actor(policy: SavedPolicy) -> tuple[Callable[..., Array], tuple[int, ...]]:
    """The policy as a function, and the shape of an observation."""
    if len(policy.seeds) > 1:
        raise InputError("policy is of several seeds: choose one with of_seed.")
    if policy.network is not None:
        return _network_act(policy), (policy.spec["obs_dim"],)
    setting, config = _setting(policy)
    if setting.act is None or setting.policy_params is None:
        raise InputError(f"policy of study={policy.study!r} does not say what network it is, so it cannot act.")
    act, spec = setting.act, setting.env.spec
    params, kept = jax.tree.map(jnp.asarray, policy.params), setting.policy_params
    wanted = jax.eval_shape(lambda key: kept(setting.make(config, setting.env).init(key)), jax.random.key(0))
    expected = {name: leaf.shape for name, leaf in files.leaves(wanted)}
    found = {name: leaf.shape for name, leaf in files.leaves(params)}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"params.{name} of the policy has the shape {found.get(name)}, that of study={policy.study!r} with "
                f"its config {expected.get(name)}."
            )

    def system_act(obs: Array, key: Key, *, deterministic: bool) -> Array:
        return act(params, obs, key, deterministic=deterministic)

    return system_act, spec.obs_shape or (spec.obs_dim,)


def environment(policy: SavedPolicy, num_envs: int) -> Env | HostEnv:
    """Makes the environment that a policy was trained in.

    Args:
      policy: of any seeds.
      num_envs: instances of a host environment.

    Raises:
      InputError: its name or, where the system decides about it, its study or config is not known.
    """
    if policy.network is None:
        return _setting(policy)[0].env
    return envs.make_rescaled(policy.spec["name"], num_envs)


def _setting(policy: SavedPolicy) -> tuple[Setting, Any]:
    return settings.rebuilt({"study": policy.study, "env": policy.spec["name"], "config": policy.config})


def _network_act(policy: SavedPolicy) -> Callable[..., Array]:
    network, normaliser = _built(policy), policy.normaliser
    params = jax.tree.map(jnp.asarray, policy.params)
    # Infinite bounds are strings in JSON.
    low, high = (np.array(list(map(float, policy.spec[name])), np.float32) for name in ("action_low", "action_high"))

    def seen(obs: Array) -> Array:
        if normaliser is None:
            return obs
        mean, std = (np.asarray(normaliser[name], np.float32) for name in ("mean", "std"))
        return (obs - mean) / std

    def act(obs: Array, key: Key, *, deterministic: bool) -> Array:
        distribution = network.apply(params, seen(obs))
        action = distribution.mode() if deterministic else distribution.sample(key)
        return jnp.clip(action, low, high)

    return act


def export(policy: SavedPolicy, *, deterministic: bool = True) -> bytes:
    """Returns the policy as a StableHLO program for any batch size, on CPU, CUDA, ROCm and TPU.

    ``jax.export.deserialize(bytearray(program)).call`` runs it where JAX is installed and this library is not:
    ``call(obs [B, ...]) -> action [B, ...]``, or with ``seed``, uint32 ``[]``, as second argument when it samples. The
    parameters and the normaliser are inside; actions lie within the bounds of ``policy.spec``.

    Args:
      policy: of one seed.
      deterministic: the mode of each action, or a draw.

    Raises:
      InputError: as for `act_fn`, or ``flatbuffers``, in which JAX writes the program, is not installed.
    """
    act, obs_shape = _actor(policy)
    (batch,) = jax.export.symbolic_shape("batch")
    obs = jax.ShapeDtypeStruct((batch, *obs_shape), jnp.float32)

    def mode(obs: Array) -> Array:
        return jax.vmap(lambda o: act(o, jax.random.key(0), deterministic=True))(obs)

    def draw(obs: Array, seed: Array) -> Array:
        keys = jax.random.split(jax.random.key(seed), obs.shape[0])
        return jax.vmap(lambda o, k: act(o, k, deterministic=False))(obs, keys)

    with _without_source_paths():
        if deterministic:
            exported = jax.export.export(jax.jit(mode), platforms=_PLATFORMS)(obs)
        else:
            seed = jax.ShapeDtypeStruct((), jnp.uint32)
            exported = jax.export.export(jax.jit(draw), platforms=_PLATFORMS)(obs, seed)
    try:
        return bytes(exported.serialize())
    except ImportError:
        raise InputError("flatbuffers is missing, in which JAX writes programs: pip install flatbuffers.") from None


def _write(directory: Path, policy: SavedPolicy) -> Path:
    arrays = files.flat(policy.params)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    description: dict[str, Any] = {
        "format": files.FORMAT,
        **{name: getattr(policy, name) for name in SavedPolicy._fields if name != "params"},
        "params": {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()},
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    description["digest"] = files.digest(description)
    files.check_network(directory / files.FACTS, description["network"], policy.spec["action_dim"])
    files.check_normaliser(directory / files.FACTS, description["normaliser"], policy.spec["obs_dim"])
    files.write(directory, description, buffer.getvalue())
    return directory


def _with_seed_axis(policy: SavedPolicy) -> dict[str, np.ndarray]:
    flat = files.flat(policy.params)
    return flat if len(policy.seeds) > 1 else {name: array[None] for name, array in flat.items()}


def _versions() -> dict[str, str | None]:
    """Versions by package; None for one that runs without being installed."""
    found: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Keeps the paths and lines of the callers out of programs, so that a program depends on the policy alone."""
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _network(config: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """The network that a config in our own names describes."""
    if {"hidden", "activation", "obs_limit"} <= config.keys():
        names = {"hidden": "hidden", "activation": "activation", "limit": "obs_limit"}
        return {"kind": "filtered_gaussian"} | {name: config[of] for name, of in names.items()}
    if not {"policy_hidden", "policy_activation"} <= config.keys():
        return None
    bounds = [float(bound) for name in ("action_low", "action_high") for bound in spec[name]]
    return {
        "kind": "gaussian",
        "hidden": config["policy_hidden"],
        "activation": config["policy_activation"],
        "squash": bool(np.all(np.isfinite(bounds))),
    }


def _built(policy: SavedPolicy) -> networks.Network:
    assert policy.network is not None
    dims = policy.spec["obs_dim"], policy.spec["action_dim"]
    hidden, activation = policy.network["hidden"], policy.network["activation"]
    if policy.network["kind"] == "gaussian":
        return networks.gaussian_policy(*dims, hidden, activation=activation, squash=policy.network["squash"])
    plain = mlp_gaussian(*dims, hidden, activation=activation)
    return filtered(plain, dims[0], limit=policy.network["limit"])


def _check_shapes(path: Path, policy: SavedPolicy, described: Mapping[str, Any]) -> None:
    if policy.network is None:
        return
    seeds = (len(policy.seeds),) if len(policy.seeds) > 1 else ()
    wanted = jax.eval_shape(_built(policy).init, jax.random.key(0))
    expected = {name: [*seeds, *leaf.shape] for name, leaf in files.leaves(wanted)}
    for name in sorted(expected.keys() ^ described.keys()):
        raise files.refused(path, f"params.{name}", "is missing" if name in expected else "is not of this network")
    for name, shape in expected.items():
        if described[name]["shape"] != shape:
            raise files.refused(
                path, f"params.{name}.shape", f"is {described[name]['shape']}, the network's is {shape}"
            )
