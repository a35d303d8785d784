import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import trajectories
from jaxhybrid.envs import gridworld
from jaxhybrid.errors import InputError
from jaxhybrid.trajectories import Dataset, Trajectory
from jaxhybrid.types import HostEnv, TimeStep


def recorded(steps=3, **changes):
    rng = np.random.default_rng(0)
    one = Trajectory(
        obs=rng.normal(size=(steps, 2)),
        action=rng.integers(0, 4, steps),
        reward=rng.normal(size=steps),
        discount=np.ones(steps),
        next_obs=rng.normal(size=(steps, 2)),
        behaviour_log_prob=-rng.uniform(size=steps),
        mask=np.ones(steps),
    )
    return one._replace(**changes)


def dataset(**changes):
    return trajectories.stack([recorded(), recorded()])._replace(**changes)


def test_collection_ends_with_the_episode():
    env = gridworld.make()

    def act_fn(obs, key):
        # Up in the lower area; left or right in the upper one, reversed there; the goal is in its corner.
        upper = obs[0] < 2
        along = jnp.where(obs[0] == 0, 3, 1)
        ended = jnp.sum(obs) == 0
        action = jnp.where(ended, 2, jnp.where(upper, along, 0))
        return action, jnp.where(ended, -jnp.inf, jnp.log(0.25))

    def step(env_state, action, key):
        # Only past the end anyone goes down.
        env_state, after = env.step(env_state, action, key)
        return env_state, after._replace(reward=jnp.where(action[0] == 2, jnp.nan, after.reward))

    broken = env._replace(step=step)
    run = jax.jit(jax.vmap(lambda k: trajectories.collect(broken, k, act_fn=act_fn, length=12)))
    data = trajectories.checked(run(jax.random.split(jax.random.key(0), 20)))
    for t in range(20):
        length = int(data.mask[t].sum())
        row, column = data.obs[t, 0]
        assert length == row + column
        np.testing.assert_array_equal(data.mask[t], np.arange(12) < length)
        np.testing.assert_array_equal(data.reward[t], -data.mask[t])
        np.testing.assert_allclose(data.behaviour_log_prob[t], np.log(0.25) * data.mask[t], rtol=1e-6)
        assert data.discount[t, length - 1] == 0 and np.all(data.discount[t, : length - 1] == 1)
        np.testing.assert_array_equal(data.next_obs[t, : length - 1], data.obs[t, 1:length])


def counters(num_envs=2):
    """Host instances that count up from their seed's start and end, instance by instance, after 2 and 3 steps."""
    spec = gridworld.make().spec._replace(name="counters", obs_dim=1)

    def reset(seed):
        start = np.full((num_envs, 1), seed % 7, np.float32)
        return (start, np.zeros(num_envs, int)), start

    def step(env_state, action):
        obs, steps = env_state[0] + action, env_state[1] + 1
        terminated = steps >= 2 + np.arange(num_envs)
        reward = np.where(steps > 2 + np.arange(num_envs), np.nan, obs[:, 0])
        return (obs, steps), TimeStep(obs, reward, terminated, np.zeros(num_envs, bool))

    def reset_where(env_state, obs, mask):
        # Not a new episode but one that has long ended: what is recorded of it must be masked.
        return (np.where(mask[:, None], np.nan, env_state[0]), env_state[1]), np.where(mask[:, None], 0.0, obs)

    return HostEnv(reset, step, reset_where, lambda: None, num_envs, spec)


def test_collection_on_the_host():
    def act_fn(obs, keys):
        return jnp.ones((2, 1)), obs[:, 0] / 10

    data = trajectories.host_collect(counters(), jax.random.key(0), act_fn=act_fn, length=4, count=3)
    np.testing.assert_array_equal(data.mask, [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(data.discount[:2, :3], [[1, 0, 0], [1, 1, 0]])
    for t in range(3):
        start, length = data.obs[t, 0, 0], int(data.mask[t].sum())
        np.testing.assert_array_equal(data.obs[t, :length, 0], start + np.arange(length))
        np.testing.assert_array_equal(data.next_obs[t, :length, 0], start + 1 + np.arange(length))
        np.testing.assert_array_equal(data.reward[t], (start + 1 + np.arange(4)) * data.mask[t])
        np.testing.assert_allclose(data.behaviour_log_prob[t], (start + np.arange(4)) / 10 * data.mask[t], rtol=1e-6)
    assert data.obs[0, 0] == data.obs[1, 0] != data.obs[2, 0], "one start per round"
    again = trajectories.host_collect(counters(), jax.random.key(0), act_fn=act_fn, length=4, count=3)
    np.testing.assert_array_equal(again.obs, data.obs)
    for name in ("length", "count"):
        with pytest.raises(InputError, match=f"{name}=0 must be at least 1"):
            trajectories.host_collect(
                counters(), jax.random.key(0), act_fn=act_fn, **{"length": 1, "count": 1, name: 0}
            )


def test_stacking_pads_with_masked_steps():
    with pytest.raises(InputError, match=r"unequal lengths \(2 to 3\) and no mask: pass pad=True"):
        trajectories.stack([recorded(3), recorded(2)])
    data = trajectories.stack([recorded(3), recorded(2)], pad=True)
    np.testing.assert_array_equal(data.mask, [[1, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(data.obs[1, 2], data.obs[1, 1])
    assert data.reward[1, 2] == data.behaviour_log_prob[1, 2] == 0
    with pytest.raises(InputError, match="trajectories is empty"):
        trajectories.stack([])


def test_saved_data_come_back_as_they_were(tmp_path):
    data, path = dataset(), tmp_path / "data.npz"
    Dataset(data, "gridworld").save(path)
    loaded = Dataset.load(path)
    assert loaded.env == "gridworld"
    jax.tree.map(np.testing.assert_array_equal, loaded.of("gridworld"), data)
    with pytest.raises(InputError, match="env='minigolf', but the data set was recorded in 'gridworld'"):
        loaded.of("minigolf")
    with pytest.raises(InputError, match="exists: name another file"):
        loaded.save(path)
    with pytest.raises(InputError, match="env is empty"):
        Dataset(data, "").save(tmp_path / "nameless.npz")


def test_damaged_or_foreign_files_are_refused(tmp_path):
    path = tmp_path / "data.npz"
    Dataset(dataset(), "gridworld").save(path)
    with np.load(path) as file:
        contents = {name: file[name] for name in file.files}
    np.savez(tmp_path / "changed.npz", **{**contents, "reward": contents["reward"] + 1e-3})
    np.savez(tmp_path / "renamed.npz", **{**contents, "env": np.asarray("minigolf")})
    np.savez(tmp_path / "older.npz", **{**contents, "format": np.asarray(1)})
    np.savez(tmp_path / "foreign.npz", reward=np.ones(3))
    np.savez(tmp_path / "pickled.npz", reward=np.array([{"a": 1}], dtype=object))
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:300])
    for name, match in (
        ("changed", "is damaged"),
        ("renamed", "is damaged"),
        ("older", "is not a data set of this library, format 2"),
        ("foreign", "is not a data set of this library"),
        ("pickled", "cannot be read as a data set: ValueError"),
        ("cut", "cannot be read as a data set"),
        ("missing", "cannot be read as a data set: FileNotFoundError"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            Dataset.load(tmp_path / f"{name}.npz")
        assert "\n" not in str(caught.value)


def test_no_flipped_bit_gets_through(tmp_path):
    path, flipped = tmp_path / "data.npz", tmp_path / "flipped.npz"
    Dataset(dataset(), "gridworld").save(path)
    whole, data = path.read_bytes(), dataset()
    refused = 0
    for position in range(0, len(whole), 5):
        flipped.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        try:
            loaded = Dataset.load(flipped)
        except InputError:
            refused += 1
            continue
        # The archive has bytes that say nothing, such as dates.
        assert loaded.env == "gridworld"
        jax.tree.map(np.testing.assert_array_equal, loaded.trajectories, data)
    assert refused > len(whole) / 5 * 0.4


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"behaviour_log_prob": None}, "behaviour_log_prob is missing.*Add it with"),
        ({"mask": None}, "mask is missing"),
        ({"reward": jnp.ones(3)}, r"reward has the shape \(3,\)"),
        ({"obs": jnp.ones((2, 4, 2))}, r"obs has the shape \(2, 4, 2\) and reward \(2, 3\)"),
        ({"behaviour_log_prob": jnp.zeros((2, 3)).at[0, 1].set(-jnp.inf)}, "behaviour_log_prob=-inf at .* 0, step 1"),
        ({"reward": jnp.ones((2, 3)).at[1, 2].set(jnp.nan)}, "reward is not finite at trajectory 1, step 2"),
        ({"mask": jnp.array([[1.0, 1, 1], [1, 0, 1]])}, "mask of trajectory 1 .* see step 2"),
        ({"mask": jnp.array([[1.0, 1, 1], [0, 0, 0]])}, "mask of trajectory 1"),
    ],
)
def test_data_that_make_no_sense_are_refused(tmp_path, changes, match):
    with pytest.raises(InputError, match=match):
        Dataset(dataset(**changes), "gridworld").save(tmp_path / "data.npz")
    assert not list(tmp_path.iterdir())


def test_actions_that_the_behaviour_never_takes_are_refused():
    data = dataset()
    target = jnp.zeros((2, 3))
    trajectories.check_support(data, target)
    behaviour = data.behaviour_log_prob.at[1, 1].set(-jnp.inf)
    with pytest.raises(InputError, match="behaviour_log_prob=-inf at trajectory 1, step 1"):
        trajectories.check_support(data, target, behaviour)
    # Where the target does not go either, or past the end, nothing is missing.
    trajectories.check_support(data, target.at[1, 1].set(-jnp.inf), behaviour)
    trajectories.check_support(data._replace(mask=data.mask.at[1, 1:].set(0.0)), target, behaviour)
