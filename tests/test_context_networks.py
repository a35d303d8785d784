import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import context_layers as layers
from jaxhybrid import context_networks as networks
from jaxhybrid.errors import InputError
from jaxhybrid.networks import Network
from jaxhybrid.ops import trees

SIZES, ACTIONS, T = (3, 2), 4, 3
KEY = jax.random.key(0)


@functools.cache
def built(recurrent):
    """Networks, their parameters, and one compiled program that applies them all to a batch or to one episode."""
    nets = networks.make_networks(SIZES, (3, 3), num_actions=ACTIONS, num_ids=5, recurrent=recurrent)
    params = jax.jit(
        lambda key: {name: net.init(k) for name, net, k in zip(nets._fields, nets, jax.random.split(key, 4))}
    )(KEY)

    def apply(obs, action, goal, code):
        previous = jnp.concatenate([jnp.zeros_like(action[..., :1]), action + 1], axis=-1)
        return {
            "decoder": nets.decoder.apply(params["decoder"], obs, action),
            "exploration": nets.exploration.apply(params["exploration"], obs, previous),
            "execution": nets.execution.apply(params["execution"], obs, goal, code),
        }

    return nets, params, jax.jit(apply)


GOAL, CODE = jnp.array([[0, 2], [1, 1]]), jax.random.normal(KEY, (2, layers.CODE))


def episode(seed=0, batch=()):
    rng = np.random.default_rng(seed)
    obs = np.stack([rng.integers(0, size, (*batch, T + 1)) for size in SIZES], axis=-1)
    return jnp.asarray(obs), jnp.asarray(rng.integers(0, ACTIONS, (*batch, T)))


def test_the_embedder_is_a_hidden_layer_on_concatenated_tables():
    module = layers.Embedder(SIZES)
    values = jnp.array([[2, 1], [0, 0]])
    params = module.init(KEY, values)
    leaves = {name: np.asarray(leaf) for name, leaf in params["params"].items() if not isinstance(leaf, dict)}
    joined = np.concatenate([leaves[f"table_{i}"][values[:, i]] for i in range(2)], axis=1)
    hidden = np.maximum(joined @ np.concatenate([leaves["kernel_0"], leaves["kernel_1"]]) + leaves["bias"], 0.0)
    linear = params["params"]["out"]
    expected = hidden @ np.asarray(linear["kernel"]) + np.asarray(linear["bias"])
    np.testing.assert_allclose(module.apply(params, values), expected, rtol=1e-5, atol=1e-6)


def test_only_what_can_be_seen_is_embedded():
    possible = ((2, 1), (0, 0), (1, 0))
    every, few = layers.Embedder(SIZES), layers.Embedder(SIZES, possible=possible)
    chosen = np.random.default_rng(0).integers(0, 3, (4, 5))
    values, weights = jnp.asarray(np.array(possible)[chosen]), jax.random.normal(KEY, (4, 5, layers.CODE))
    params = jax.jit(every.init)(KEY, values)
    assert [module.apply(params, values, method="table")[0].shape[0] for module in (every, few)] == [6, 3]

    def seen(module, params):
        embedded = module.apply(params, values)
        return jnp.sum(weights * embedded), embedded

    slope, embedded = jax.jit(jax.grad(lambda p: seen(every, p), has_aux=True))(params)
    few_slope, few_embedded = jax.jit(jax.grad(lambda p: seen(few, p), has_aux=True))(params)
    np.testing.assert_allclose(few_embedded, embedded, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), few_slope, slope)


@pytest.mark.parametrize("wrong", [(0, 1), (3, 0), (2, -1)], ids=["impossible", "too large", "negative"])
def test_what_cannot_be_seen_is_not_taken_for_something_else(wrong):
    module = layers.Embedder(SIZES, possible=((2, 1), (0, 0), (1, 0)))
    values = jnp.array([(2, 1), wrong, (0, 0), (1, 0)])
    embedded = module.apply(module.init(KEY, values), values)
    np.testing.assert_array_equal(jnp.isnan(embedded).all(axis=1), [False, True, False, False])
    assert jnp.isfinite(embedded[jnp.array([0, 2, 3])]).all()


def test_an_impossible_observation_spoils_the_gradient_unless_it_is_past_the_end():
    possible = ((2, 1), (0, 0), (1, 0))
    nets = networks.make_networks(SIZES, (3, 3), num_actions=ACTIONS, num_ids=5, possible=possible)
    params = jax.jit(lambda key: (nets.decoder.init(key), nets.exploration.init(key)))(KEY)
    obs = jnp.asarray(np.array(possible)[np.random.default_rng(0).integers(0, 3, (2, T + 1))])
    action, lengths = jnp.zeros((2, T), jnp.int32), jnp.array([T, 1])

    @jax.jit
    def lengths_of_gradients(obs):
        previous = jnp.zeros((2, T + 1), jnp.int32)
        decoder = jax.grad(lambda p: jnp.sum(jnp.square(nets.decoder.packed(p, obs, action, lengths))))(params[0])
        policy = jax.grad(
            lambda p: jnp.sum(jnp.square(nets.exploration.packed(p, obs, previous, lengths + 1).advantage))
        )(params[1])
        return jnp.stack([trees.norm(decoder), trees.norm(policy)])

    right = lengths_of_gradients(obs)
    assert jnp.isfinite(right).all() and (right > 0).all()
    assert not jnp.isfinite(lengths_of_gradients(obs.at[1, 1].set(jnp.array((0, 1))))).any()
    np.testing.assert_array_equal(lengths_of_gradients(obs.at[1, T].set(jnp.array((0, 1)))), right)


def test_a_table_of_pictures_is_the_pictures_one_by_one():
    look = layers.Look(
        draw=lambda obs: jnp.outer(jax.nn.one_hot(obs[0], 3), jax.nn.one_hot(obs[1], 2)),
        encoder=Network(
            lambda key: {"kernel": jax.random.normal(key, (6, layers.CODE))},
            lambda params, picture: jnp.tanh(picture.ravel() @ params["kernel"]),
        ),
    )
    module = layers.PictureEmbedder(SIZES, look)
    rng = np.random.default_rng(0)
    many = jnp.stack([jnp.asarray(rng.integers(0, size, (4, 5))) for size in SIZES], axis=-1)
    params = module.init(KEY, many)
    weights = jax.random.normal(KEY, (4, 5, layers.CODE))

    def one_by_one(params):
        rows = [[module.apply(params, many[i, j][None])[0] for j in range(5)] for i in range(4)]
        return jnp.stack([jnp.stack(row) for row in rows])

    # Twenty observations are more than the six that there are; one is not.
    np.testing.assert_allclose(module.apply(params, many), one_by_one(params), rtol=1e-6)
    slopes = [
        jax.grad(lambda p, f=f: jnp.sum(weights * f(p)))(params) for f in (lambda p: module.apply(p, many), one_by_one)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *slopes)


def test_a_prefix_has_the_code_of_the_trajectory_that_ends_there():
    _, _, apply = built(True)
    obs, action = episode(batch=(2,))
    other_obs, other_action = episode(1, batch=(2,))
    codes = apply(obs, action, GOAL, CODE)["decoder"]
    assert codes.shape == (2, T + 1, layers.CODE)
    changed = (obs.at[:, 2:].set(other_obs[:, 2:]), action.at[:, 1:].set(other_action[:, 1:]))
    later = apply(*changed, GOAL, CODE)["decoder"]
    # What comes after a prefix, padding included, changes nothing of its code, to the bit.
    np.testing.assert_array_equal(later[:, :2], codes[:, :2])
    assert np.any(later[:, 2] != codes[:, 2])
    # The empty prefix says the same of every task.
    np.testing.assert_array_equal(apply(other_obs, other_action, GOAL, CODE)["decoder"][:, 0], codes[:, 0])


@pytest.mark.float64
def test_sequences_of_their_own_lengths_are_the_padded_ones_without_the_padding():
    nets = networks.make_networks(SIZES, (3, 3), num_actions=ACTIONS, num_ids=5)
    # More than a block of eight, of every length, none in order.
    lengths = jnp.array([2, 0, 3, 1, 3, 0, 1, 2, 3, 3])
    obs, action = episode(batch=(10,))
    previous = jnp.concatenate([jnp.zeros_like(action[:, :1]), action + 1], axis=1)
    inside = jnp.arange(T + 1)[None] <= lengths[:, None]
    keys = jax.random.split(KEY, 3)
    drawn = nets.decoder.init(keys[0]), nets.exploration.init(keys[1])
    decoder, explorer = jax.tree.map(lambda x: x.astype(float), drawn)
    weights = jnp.where(inside[..., None], jax.random.normal(keys[2], (10, T + 1, layers.CODE)), 0.0)

    def read(codes, heads):
        total = jnp.sum(weights * codes) + jnp.sum(weights[..., 0] * heads.value)
        return total + jnp.sum(weights[..., :ACTIONS] * heads.advantage), (codes, heads)

    @jax.jit
    def found(obs, action, previous):
        def padded(params):
            codes = nets.decoder.apply(params[0], obs, action)
            return read(codes, nets.exploration.apply(params[1], obs, previous))

        def packed(params):
            codes = nets.decoder.packed(params[0], obs, action, lengths)
            return read(codes, nets.exploration.packed(params[1], obs, previous, lengths + 1))

        whole = nets.decoder.whole(decoder, obs, action, lengths)
        return *(jax.value_and_grad(f, has_aux=True)((decoder, explorer)) for f in (padded, packed)), whole

    ((_, expected), slopes), ((_, outputs), packed_slopes), whole = found(obs, action, previous)
    np.testing.assert_allclose(whole, expected[0][jnp.arange(10), lengths], rtol=1e-10, atol=1e-12)
    for x, y in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
        flags = inside.reshape(*inside.shape, *(1,) * (x.ndim - 2))
        np.testing.assert_allclose(x, jnp.where(flags, y, 0.0), rtol=1e-10, atol=1e-12)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11), packed_slopes, slopes)
    # What stands past the ends changes nothing, to the bit.
    other = [jnp.where(inside[..., None], obs, 0), jnp.where(inside[:, 1:], action, 0), jnp.where(inside, previous, 0)]
    _, ((_, again), again_slopes), again_whole = found(*other)
    jax.tree.map(np.testing.assert_array_equal, (again, again_slopes), (outputs, packed_slopes))
    np.testing.assert_array_equal(again_whole, whole)


def test_sequences_of_their_own_lengths_are_learnt_from_by_several_runs_side_by_side():
    nets = networks.make_networks(SIZES, (3, 3), num_actions=ACTIONS, num_ids=5)
    obs, action = episode(batch=(2, 10))
    lengths = jnp.array([[2, 0, 3, 1, 3, 0, 1, 2, 3, 3], [0, 0, 1, 0, 0, 2, 0, 0, 0, 1]])
    params = jax.vmap(nets.decoder.init)(jax.random.split(KEY))

    def slope(params, *run):
        return jax.grad(lambda p: jnp.sum(jnp.square(nets.decoder.packed(p, *run))))(params)

    together, alone = jax.jit(jax.vmap(slope))(params, obs, action, lengths), jax.jit(slope)
    for i in range(2):
        one = alone(*jax.tree.map(lambda x, i=i: x[i], (params, obs, action, lengths)))
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-5), together, one)


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_batch_is_a_loop_and_a_sequence_its_steps(recurrent):
    nets, params, apply = built(recurrent)
    obs, action = episode(batch=(2,))
    together = apply(obs, action, GOAL, CODE)
    one = jax.jit(
        lambda hidden, obs, previous, goal, code: (
            nets.exploration.step(params["exploration"], hidden[0], obs, previous),
            nets.execution.step(params["execution"], hidden[1], obs, goal, code),
        )
    )
    for i in range(2):
        alone = apply(obs[i], action[i], GOAL[i], CODE[i])
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-5), together, alone)
        hidden = (nets.exploration.start, nets.execution.start)
        for t in range(T + 1):
            previous = action[i, t - 1] + 1 if t else jnp.array(0)
            (first, explored), (second, executed) = one(hidden, obs[i, t], previous, GOAL[i], CODE[i])
            hidden = (first, second)
            for name, found in (("exploration", explored), ("execution", executed)):
                expected = jax.tree.map(lambda x, t=t: x[t], alone[name])
                jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, expected)
    assert (len(nets.execution.start) == 2) == recurrent


def test_advantages_are_centred_by_state_or_by_batch():
    heads = networks.Heads(jnp.array([1.0, 2.0]), jnp.array([[0.0, 2.0], [4.0, 10.0]]))
    np.testing.assert_allclose(networks.dueling(heads), [[0.0, 2.0], [-1.0, 5.0]])
    # As released: a value depends on what else is in the batch.
    np.testing.assert_allclose(networks.dueling(heads, mean="batch"), [[-3.0, -1.0], [2.0, 8.0]])
    with pytest.raises(InputError, match="dueling_mean='stat'"):
        networks.dueling(heads, mean="stat")


def test_layers_start_as_wide_as_their_inputs_allow():
    _, params, _ = built(True)
    kernel = params["problem"]["params"]["code"]["kernel"]
    assert np.abs(kernel).max() <= 32**-0.5 and np.abs(kernel).max() > 0.9 * 32**-0.5
    assert np.std(params["problem"]["params"]["task"]["embedding"]) == pytest.approx(1.0, abs=0.3)
    gates = params["exploration"]["params"]["memory"]["kernel"]
    assert gates.shape == (64, 256) and np.abs(gates).max() <= 0.125


def test_a_memory_of_another_batch_is_refused():
    nets, params, _ = built(True)
    obs, _ = episode()
    hidden = tuple(jnp.zeros((3, 64)) for _ in range(2))
    with pytest.raises((TypeError, ValueError)):
        nets.exploration.step(params["exploration"], hidden, obs[0], jnp.array(0))
