import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.gradient_readers import gradient_reader
from jaxhybrid.integer_dynamics import last_layers, outcome_model, with_last_layers
from jaxhybrid.losses.adaptation import outcome_loss

KEY = jax.random.key(0)
SIZES, ACTIONS, WIDTH, RANK = (9, 9, 4), 9, 16, 3
STEP = (jnp.array([4, 5, 1]), jnp.array(5), jnp.array([0, 7, 1]))


@functools.cache
def case():
    model = outcome_model(SIZES, ACTIONS, width=WIDTH, rank=RANK)
    return model, jax.jit(model.init)(KEY)


def test_there_is_a_distribution_for_every_component():
    model, params = case()
    logits = model.apply(params, *STEP[:2])
    assert [each.shape for each in logits] == [(size,) for size in SIZES]
    for same in (
        model.shifted(params, model.origin, *STEP[:2]),
        model.apply(with_last_layers(params, last_layers(params)), *STEP[:2]),
    ):
        for one, two in zip(same, logits):
            np.testing.assert_allclose(one, two, rtol=1e-6)


def test_coordinates_are_the_projection_of_the_gradient():
    model, params = case()
    coordinates = jax.tree.map(lambda x: 0.1 + x, model.origin)
    moved = jax.grad(lambda m: outcome_loss(m, STEP, KEY, logits_fn=lambda m, o, a: model.shifted(params, m, o, a))[0])
    logits_fn = lambda layers, o, a: model.apply(with_last_layers(params, layers), o, a)  # noqa: E731
    full = jax.grad(lambda layers: outcome_loss(layers, STEP, KEY, logits_fn=logits_fn)[0])(last_layers(params))
    for name, (left, right) in model.directions.items():
        layer = jnp.concatenate([full[name]["kernel"], full[name]["bias"][None]])
        np.testing.assert_allclose(moved(model.origin)[name], left.T @ layer @ right.T, rtol=1e-4, atol=1e-6)
    assert any((moved(coordinates)[name] != moved(model.origin)[name]).any() for name in coordinates)


def test_lengths_are_kept_in_the_mean():
    """Over the directions, the projection of a matrix is as long as the matrix."""
    gradient = jax.random.normal(KEY, (WIDTH + 1, sum(SIZES)))
    lengths = []
    for seed in range(200):
        left, right = outcome_model(SIZES, ACTIONS, width=WIDTH, rank=8, seed=seed).directions["heads"]
        lengths.append(float(jnp.sum((left.T @ gradient @ right.T) ** 2) / jnp.sum(gradient**2)))
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert abs(np.mean(lengths) - 1.0) < 5 * error < 0.2


def gradients(seed):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(1e-3 * rng.normal(size=(6, 4)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=4), jnp.float32),
    }


READERS = pytest.mark.parametrize(
    ("kind", "preprocessing"),
    [("flat", "sign_log"), ("flat", "rms"), ("attention", "sign_log"), ("low_rank", "rms")],
)


@READERS
def test_readers_tell_gradients_apart_and_learn(kind, preprocessing):
    reader = gradient_reader(gradients(0), kind=kind, out=5, preprocessing=preprocessing)
    params = jax.jit(reader.init)(KEY)
    apply = jax.jit(reader.apply)
    codes = [apply(params, gradients(seed)) for seed in range(2)]
    assert codes[0].shape == (5,) and jnp.max(jnp.abs(codes[0] - codes[1])) > 1e-2
    # Nothing is known yet: no number, but a finite code.
    assert np.isfinite(apply(params, jax.tree.map(jnp.zeros_like, gradients(0)))).all()
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(reader.apply(p, gradients(0)) ** 2)))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(slopes))
    of_mlp = [g for name, g in jax.tree_util.tree_leaves_with_path(slopes) if "MLP_0" in str(name)]
    assert len(of_mlp) == 4 and all(jnp.any(g != 0) for g in of_mlp)


@READERS
def test_many_gradients_are_read_as_one_by_one_or_only_the_first(kind, preprocessing):
    reader = gradient_reader(gradients(0), kind=kind, out=5, preprocessing=preprocessing)
    params = jax.jit(reader.init)(KEY)
    each = [gradients(seed) for seed in range(6)]
    many, rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), jnp.asarray(4)

    def one_by_one(params):
        return jnp.stack([reader.apply(params, one) for one in each])

    def slope(read):
        return jax.grad(lambda p: jnp.sum(read(p)[:4] ** 2))(params)

    @jax.jit
    def found():
        def first(params):
            return reader.many(params, many, rows)

        return one_by_one(params), reader.many(params, many), first(params), slope(one_by_one), slope(first)

    expected, all_of_them, first, expected_slope, first_slope = found()
    np.testing.assert_allclose(all_of_them, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first[:4], expected[:4], rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), first_slope, expected_slope)


def test_attention_does_not_depend_on_the_order_of_rows():
    shuffled = gradients(0) | {"kernel": gradients(0)["kernel"][::-1]}
    for kind, same in (("attention", True), ("flat", False)):
        reader = gradient_reader(gradients(0), kind=kind)
        params, apply = jax.jit(reader.init)(KEY), jax.jit(reader.apply)
        codes = [apply(params, each) for each in (gradients(0), shuffled)]
        assert (jnp.max(jnp.abs(codes[0] - codes[1])) < 1e-5) == same


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: gradient_reader(gradients(0), kind="flatt"), "kind='flatt' is unknown: did you mean 'flat'"),
        (lambda: gradient_reader(gradients(0), preprocessing="log"), "preprocessing='log' is unknown"),
        (lambda: gradient_reader({}), "gradients holds no number"),
        (lambda: outcome_model(SIZES, ACTIONS, rank=0), "rank=0 and width=128 must be at least 1"),
    ],
)
def test_bad_input_is_refused(build, why):
    with pytest.raises(InputError, match=why):
        build()
