import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxhybrid import abstract_networks, envs
from jaxhybrid.envs import catcher, maze
from jaxhybrid.errors import InputError
from jaxhybrid.losses import abstract
from jaxhybrid.losses.batching import batched
from jaxhybrid.networks import Network
from jaxhybrid.planning import tree
from jaxhybrid.systems import gmas, gmas_parts, gmas_updates
from jaxhybrid.types import Transition

KEY = jax.random.key(0)
SIDE, ACTIONS, SIZE = 2, 3, 2


def linear_networks(pixels=SIDE * SIDE, actions=ACTIONS):
    """Five smooth networks of a few numbers each, on pictures of few pixels."""
    shapes = dict.fromkeys(("dynamics", "reward", "discount", "critic"), (actions, SIZE)) | {"encoder": (SIZE, pixels)}
    apply = {
        "encoder": lambda p, picture: jnp.tanh(p @ picture.ravel()),
        "dynamics": lambda p, z, a: z + p[a],
        "reward": lambda p, z, a: p[a] @ z,
        "discount": lambda p, z, a: p[a] @ z,
        "critic": lambda p, z: jnp.sin(p @ z),
    }
    return abstract_networks.AbstractNetworks(
        **{
            name: Network(lambda key, shape=shape: 0.5 * jax.random.normal(key, shape), apply[name])
            for name, shape in shapes.items()
        }
    )


def config(**changes):
    return dataclasses.replace(gmas.presets["smoke"], **{"target_interval": 2, "loss_mode": "sequential"} | changes)


@functools.cache
def built(**changes):
    """Parts with small networks, a learner, and a compiled update."""
    spec = envs.make("catcher").spec._replace(num_actions=ACTIONS)
    parts = gmas_parts.make_parts(config(**changes), spec)
    nets = linear_networks()
    parts = parts._replace(nets=nets, acting=nets, encode=gmas_parts._picture_by_picture(nets.encoder)[1])
    return parts, gmas_updates.init_learner(parts, KEY), jax.jit(partial(gmas_updates.update, parts))


def rows(seed=0, count=4):
    rng = np.random.default_rng(seed)
    discount = np.ones(count)
    discount[1] = 0.0
    batch = Transition(
        obs=rng.normal(size=(count, SIDE, SIDE)),
        action=rng.integers(0, ACTIONS, size=count),
        reward=rng.normal(size=count),
        discount=discount,
        next_obs=rng.normal(size=(count, SIDE, SIDE)),
    )
    cast = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
    return cast._replace(action=jnp.asarray(batch.action, jnp.int32))


def updated(learner=None, batch=None, rate=1e-3, **changes):
    parts, first, update = built(**changes)
    weights = jnp.ones(parts.config.match_depth + 1)
    return update(learner or first, batch or rows(), weights, jnp.asarray(rate), KEY)


def rms_step(params, grads, rate):
    """The first step of clipped RMSprop by hand: ``g / (sqrt(0.1 g^2) + 1e-4)``."""
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    clipped = jax.tree.map(lambda g: g / max(norm, 1.0), grads)
    return jax.tree.map(lambda p, g: p - rate * g / (jnp.sqrt(0.1 * g**2) + 1e-4), params, clipped)


def transition_gradient(params, batch):
    nets = linear_networks()
    loss = partial(
        abstract.transition_loss,
        encode_fn=lambda p, x: nets.encoder.apply(p["encoder"], x),
        dynamics_fn=lambda p, z, a: nets.dynamics.apply(p["dynamics"], z, a),
    )
    return jax.grad(lambda p: batched(loss)(p, batch, KEY)[0])({name: params[name] for name in ("encoder", "dynamics")})


def test_each_loss_starts_where_the_last_one_ended():
    _, first, _ = built()
    batch = rows()
    learner, metrics = updated(rate=0.1)
    moved = rms_step(
        {name: first.params[name] for name in ("encoder", "dynamics")}, transition_gradient(first.params, batch), 0.1
    )
    # Nothing else changes the dynamics.
    np.testing.assert_allclose(learner.params["dynamics"], moved["dynamics"], rtol=1e-4, atol=1e-6)
    z = jax.vmap(lambda x: jnp.tanh(moved["encoder"] @ x.ravel()))(batch.obs)
    predicted = jnp.sum(first.params["reward"][batch.action] * z, axis=1)
    assert metrics["loss/reward"] == pytest.approx(float(jnp.mean((batch.reward - predicted) ** 2)), rel=1e-4)
    still = jax.vmap(lambda x: jnp.tanh(first.params["encoder"] @ x.ravel()))(batch.obs)
    unmoved = jnp.sum(first.params["reward"][batch.action] * still, axis=1)
    assert abs(metrics["loss/reward"] - jnp.mean((batch.reward - unmoved) ** 2)) > 1e-3


def test_the_joint_optimiser_takes_one_step_on_the_sum():
    _, first, _ = built(loss_mode="joint")
    learner, metrics = updated(loss_mode="joint", rate=0.1)
    assert set(learner.opts) == {"joint"}
    batch = rows()
    z = jax.vmap(lambda x: jnp.tanh(first.params["encoder"] @ x.ravel()))(batch.obs)
    predicted = jnp.sum(first.params["reward"][batch.action] * z, axis=1)
    assert metrics["loss/reward"] == pytest.approx(float(jnp.mean((batch.reward - predicted) ** 2)), rel=1e-4)
    for name, value in learner.params.items():
        assert np.any(value != first.params[name]), name


def test_beta_is_the_weight_of_consecutive_pairs_in_the_sum():
    batch, nets = rows(), linear_networks()

    def gradient(beta):
        parts, first, _ = built(loss_mode="joint", beta=beta)
        view, weights = parts.view(batch.obs, batch.next_obs), jnp.ones(parts.config.match_depth + 1)
        fixed = (parts, first.params, first.target_params, list(gmas_parts.LOSSES), batch, view, weights, KEY)
        return jax.grad(partial(gmas_updates._total, *fixed), has_aux=True)(first.params)[0]

    _, first, _ = built(loss_mode="joint", beta=0.0)
    repel = partial(abstract.disambiguation_loss, encode_fn=lambda p, x: nets.encoder.apply(p["encoder"], x))
    pairs, _ = jax.grad(batched(repel), has_aux=True)(first.params, (batch.obs, batch.next_obs), KEY)
    assert np.abs(pairs["encoder"]).max() > 1e-2
    wanted = jax.tree.map(lambda x, y: x + 0.2 * y, gradient(0.0), pairs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradient(0.2), wanted)
    # The step along it.
    learner, _ = updated(loss_mode="joint", beta=0.2, rate=0.1)
    moved = rms_step(first.params, wanted, 0.1)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), learner.params, moved)


def test_crar_is_gmas_without_the_matching():
    for_nothing, metrics = updated(alpha=0.0)
    matched, more = updated(alpha=0.5)
    assert "critic/slope_distance" in more and "critic/slope_distance" not in metrics
    total = more["critic/td"] + 0.5 * more["critic/slope_distance"]
    assert more["loss/critic"] == pytest.approx(float(total), rel=1e-5)
    assert metrics["loss/critic"] == metrics["critic/td"]
    for name in ("dynamics", "reward", "discount"):
        np.testing.assert_array_equal(for_nothing.params[name], matched.params[name])
    assert np.any(for_nothing.params["critic"] != matched.params["critic"])


def test_beta_is_the_step_size_of_consecutive_pairs():
    # With all other gradients the same, the encoders differ by the last of the steps before the critic's.
    full, _ = updated(alpha=0.0, rate=1e-4)
    none, _ = updated(alpha=0.0, beta=0.0, rate=1e-4)
    half, _ = updated(alpha=0.0, beta=0.5, rate=1e-4)
    whole = np.asarray(full.params["encoder"] - none.params["encoder"])
    part = np.asarray(half.params["encoder"] - none.params["encoder"])
    assert np.abs(whole).max() > 1e-5
    np.testing.assert_allclose(part, 0.5 * whole, atol=0.05 * np.abs(whole).max())


def test_the_slow_copies_follow_every_interval():
    parts, first, _ = built()
    learner = first
    for count in range(4):
        before = learner
        learner, _ = updated(learner, rows(count), rate=0.05)
        slow, last = learner.target_params, before.target_params
        # The copy is made before the critic's own step, from the critic as it came, but from an encoder that moved.
        if count % parts.config.target_interval == 0:
            np.testing.assert_array_equal(slow["critic"], before.params["critic"])
            assert np.abs(slow["encoder"] - last["encoder"]).max() > 1e-3
            # The critic's step, which alone follows, is the smaller part of the way.
            way = np.linalg.norm(before.params["encoder"] - learner.params["encoder"])
            assert np.linalg.norm(slow["encoder"] - learner.params["encoder"]) < way
        else:
            jax.tree.map(np.testing.assert_array_equal, slow, last)
    assert learner.updates == 4


def test_the_double_q_target_by_hand():
    parts, first, _ = built()
    batch = rows()
    slow = jax.tree.map(lambda x: -x, first.target_params)
    view = parts.view(batch.obs, batch.next_obs)
    z, next_z = parts.encode(first.params["encoder"], view)
    encoded = batch._replace(obs=z, next_obs=next_z)
    targets = gmas_updates._td_targets(parts, first.params, slow, encoded, view)
    for i in range(4):
        z = np.tanh(np.asarray(first.params["encoder"]) @ np.asarray(batch.next_obs[i]).ravel())
        best = int(np.argmax(np.sin(np.asarray(first.params["critic"]) @ z)))
        slow_z = np.tanh(np.asarray(slow["encoder"]) @ np.asarray(batch.next_obs[i]).ravel())
        value = np.sin(np.asarray(slow["critic"]) @ slow_z)[best]
        expected = batch.reward[i] + 0.9 * batch.discount[i] * value
        assert targets[i] == pytest.approx(float(expected), rel=1e-4)


def test_an_update_with_a_nan_is_refused_as_a_whole():
    _, first, _ = built()
    bad = rows()._replace(reward=jnp.full(4, jnp.nan))
    learner, _ = updated(batch=bad)
    jax.tree.map(np.testing.assert_array_equal, learner.params, first.params)
    jax.tree.map(np.testing.assert_array_equal, learner.opts, first.opts)
    assert (learner.guard.refused, learner.guard.streak, learner.updates) == (1, 1, 1)
    again, _ = updated(learner, bad)
    assert (again.guard.refused, again.guard.streak) == (2, 2)
    good, _ = updated(again)
    assert (good.guard.refused, good.guard.streak) == (2, 0)


def test_a_slow_copy_that_is_due_is_taken_though_the_update_is_refused():
    learner, _ = updated(updated(rate=0.05)[0], rows(1), rate=0.05)
    after, _ = updated(learner, rows()._replace(reward=jnp.full(4, jnp.nan)))
    assert after.guard.refused == 1 and np.any(after.target_params["critic"] != learner.target_params["critic"])
    jax.tree.map(
        np.testing.assert_array_equal, after.target_params, {n: learner.params[n] for n in after.target_params}
    )


def test_clips_of_tensors_and_of_all_together():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.3])}
    for clip, expected in (("global", (5.0**2 + 0.3**2) ** -0.5), ("per_tensor", 0.2)):
        optimiser = gmas_parts._optimiser(config(clip=clip, rms_decay=0.0, rms_epsilon=1e6))
        scaled, _ = optimiser.update(grads, optimiser.init(grads))
        np.testing.assert_allclose(scaled["a"], expected * grads["a"] / 1e6, rtol=1e-4)
        if clip == "per_tensor":
            np.testing.assert_allclose(scaled["b"], grads["b"] / 1e6, rtol=1e-4)
    reference = optax.rmsprop(1.0, decay=0.9, eps=1e-4, initial_scale=0.0, eps_in_sqrt=False)
    mine, theirs = gmas_parts._optimiser(config(clip_norm=1e6)), reference
    step, _ = mine.update(grads, mine.init(grads))
    other, _ = theirs.update(grads, theirs.init(grads))
    np.testing.assert_allclose(step["a"], -other["a"], rtol=1e-6)


def shift_parts(drift):
    """Pictures that are the state itself, and a model that is off by ``drift`` in every step."""
    parts, _, _ = built(match_depth=2, depth_weighting="inverse_error", error_scale=0.5)
    nets = parts.nets._replace(
        encoder=Network(lambda key: None, lambda p, picture: picture),
        dynamics=Network(lambda key: None, lambda p, z, a: z + a + drift),
    )
    return parts._replace(nets=nets, acting=nets)


def walk(length=400, end_discount=0.0):
    """A number that goes up by 0, 1 or 2 a step, as a picture of one pixel, and that starts again every 20 steps."""
    rng = np.random.default_rng(1)
    action = rng.integers(0, ACTIONS, size=length)
    position, obs, next_obs, discount = 0.0, [], [], []
    for t in range(length):
        obs.append(position)
        position += action[t]
        next_obs.append(position)
        ends = t % 20 == 19
        discount.append(end_discount if ends else 1.0)
        position *= not ends
    picture = lambda x: jnp.asarray(x, jnp.float32)[:, None, None]  # noqa: E731
    reward = jnp.zeros(length)
    return Transition(picture(obs), jnp.asarray(action), reward, jnp.asarray(discount, jnp.float32), picture(next_obs))


@pytest.mark.parametrize("end_discount", [0.0, 1.0], ids=["terminated", "truncated"])
def test_the_models_error_by_depth(end_discount):
    data, none = walk(end_discount=end_discount), {"encoder": None, "dynamics": None}
    errors = partial(gmas_updates.depth_errors, params=none, data=data, key=KEY)
    # Ends of episodes are no errors of the model, however far the walk is thrown back.
    np.testing.assert_allclose(errors(shift_parts(0.0)), np.zeros(3), atol=1e-6)
    one, two, three = errors(shift_parts(0.3))
    assert one == 0 and two > 0
    # Twice the drift after two steps, next to a spread that hardly differs.
    assert three / two == pytest.approx(2.0, rel=0.1)
    spread = float(jnp.std(data.next_obs))
    assert two == pytest.approx(0.3 / spread, rel=0.2)
    weights = gmas_updates.depth_weights(shift_parts(0.3), none, data, KEY)
    np.testing.assert_allclose(weights, 1.0 / (1.0 + jnp.array([0.0, two, three]) / 0.5), rtol=1e-4)


def test_random_moves_are_kept_in_their_order():
    data = jax.jit(partial(gmas.collect, catcher.make(), num_tuples=90))(KEY)
    assert data.obs.shape == (90, 36, 36) and data.action.shape == (90,)
    ends = np.flatnonzero(np.asarray(data.discount) == 0)
    np.testing.assert_array_equal(ends, np.arange(8, 90, 9))
    follows = np.asarray(data.discount) == 1
    follows[-1] = False
    np.testing.assert_array_equal(data.next_obs[:-1][follows[:-1]], data.obs[1:][follows[:-1]])
    assert abs(float(data.action.mean()) - 0.5) < 5 * 0.5 / np.sqrt(90)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"depth_weighting": "uniform"}, [1.0, 1.0, 1.0]),
        ({"depth_weighting": "discounted", "depth_decay": 0.5}, [1.0, 0.5, 0.25]),
        # The drift is 0.2 of the spread after one step, and 0.4 after two.
        ({"depth_weighting": "accurate", "error_threshold": 0.3}, [1.0, 1.0, 0.0]),
        ({"depth_weighting": "accurate", "error_threshold": 0.1}, [1.0, 0.0, 0.0]),
        ({"depth_weighting": "inverse_error", "match_depth": 0}, [1.0]),
    ],
)
def test_the_papers_proposals_are_values_of_a_knob(changes, expected):
    parts = shift_parts(0.2 * float(jnp.std(walk().next_obs)))
    parts = parts._replace(config=config(**({"match_depth": 2} | changes)))
    weights = gmas_updates.depth_weights(parts, {"encoder": None, "dynamics": None}, walk(), KEY)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_the_plan_that_acts_is_the_mean_over_depths():
    parts, learner, _ = built()
    picture = jnp.array([[0.3, -0.5], [0.1, 0.9]])
    z = jnp.tanh(learner.params["encoder"] @ picture.ravel())
    values = gmas_updates.plan(parts.nets, learner.params, learner.params["critic"], z, depth=2, branching=2)
    act = partial(gmas.planned_act, parts, learner.params, picture, depth=2)
    assert act(KEY) == jnp.argmax(jnp.mean(values, axis=0))
    drawn = jax.vmap(lambda k: act(k, epsilon=1.0))(jax.random.split(KEY, 200))
    assert set(np.unique(drawn)) == set(range(ACTIONS))
    one = gmas_updates.plan(
        parts.nets, learner.params, learner.params["critic"], z, depth=2, branching=2, action=jnp.array(1)
    )
    np.testing.assert_allclose(tree.plan_q(one), tree.plan_q(values)[1], rtol=1e-6)


def test_cells_are_kept_in_bytes_and_drawn_for_the_networks():
    env = maze.make(pool_size=4, observation="cells", max_episode_steps=None, split="train")
    system = gmas.make(dataclasses.replace(gmas.presets["crar"], num_tuples=20), env, sprites=maze.sprites())
    state = jax.eval_shape(system.init, KEY)
    assert state.data.obs.shape == (20, 8, 8) and state.data.obs.dtype == jnp.uint8
    # Not drawn, the networks say what they miss.
    with pytest.raises(InputError, match="multiple of 12"):
        gmas.make(gmas.presets["crar"], env)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"distance": "l1"}, "'l2'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_tuples": 1}, "match_depth"),
        ({"test_depths": (0, -1)}, "test_depths"),
        ({"maze_side": 7}, "maze_side=7"),
        ({"maze_keys": 4}, "maze_keys=4"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        *[({name: 0}, f"{name}=0") for name in ("train_limit", "match_branching", "plan_branching")],
    ],
)
def test_numbers_that_make_no_sense_are_refused(changes, why):
    with pytest.raises(InputError, match=why):
        gmas.make(config(**changes), catcher.make())


def test_environments_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="real-valued actions"):
        gmas.make(config(), envs.make("pendulum"))
    env = maze.make(pool_size=4)
    data = Transition(jnp.zeros((9, 36, 36)), *[jnp.zeros(9)] * 3, jnp.zeros((9, 36, 36)))
    with pytest.raises(InputError, match=r"expected \[N, 48, 48\]"):
        gmas.make(config(), env, data=data)


def test_steps_have_the_shape_of_scan_and_learn(monkeypatch):
    # The real networks take a minute to compile; they have tests of their own.
    small = linear_networks(pixels=36 * 36, actions=2)
    monkeypatch.setattr(gmas_parts, "vector_networks", lambda *_, **__: small)
    env = catcher.make()
    made = gmas.make(config(test_depths=(1,), test_episodes=16), env, test_env=env)
    step, states, metrics = jax.jit(made.step), [jax.jit(made.init)(KEY)], []
    for _ in range(2):
        state, logged = step(states[-1], None)
        states.append(state)
        metrics.append(logged)
        assert jax.tree.structure(state) == jax.tree.structure(states[0])
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, states[0])
        assert all(value.shape == () and np.isfinite(value) for value in logged.values())
    assert list(metrics[0]) == list(metrics[1]) and step._cache_size() == 1
    again, _ = step(states[1], None)
    jax.tree.map(np.testing.assert_array_equal, again.learner, states[2].learner)
    assert [m["train/updates"] for m in metrics] == [2, 4]
    assert all(-1.0 <= metrics[1][f"test/{label}_depth1"] <= 1.0 for label in ("greedy", "noisy"))
    assert metrics[1]["loss/reward"] != metrics[0]["loss/reward"]
    act = jax.jit(partial(made.act, deterministic=False))
    picture = jnp.zeros((36, 36))
    actions = jax.vmap(lambda k: act(states[2], picture, k))(jax.random.split(KEY, 100))
    assert actions.shape == (100,) and set(np.unique(actions)) == {0, 1}


def test_presets_differ_by_their_names():
    assert gmas.presets["crar"] == dataclasses.replace(gmas.presets["gmas-l2"], alpha=0.0, distance="cosine")
    assert {gmas.presets[f"gmas-l2/depth{d}"].match_depth for d in (1, 3, 5)} == {1, 3, 5}
    assert gmas.presets["gmas-cosine"].alpha == 0.05 and gmas.presets["gmas-l2"].alpha == 1.0


def test_a_weight_may_be_swept():
    parts, first, _ = built()
    args = (first, rows(), jnp.ones(2), jnp.asarray(1e-3), KEY)

    def swept(alpha):
        return gmas_updates.update(parts._replace(config=config(alpha=alpha)), *args)[0].params

    both = jax.jit(jax.vmap(swept))(jnp.array([0.0, 0.05]))
    alone = [updated(alpha=alpha)[0].params for alpha in (0.0, 0.05)]
    expected = jax.tree.map(lambda *each: jnp.stack(each), *alone)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), both, expected)
