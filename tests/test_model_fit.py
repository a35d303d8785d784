import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxhybrid import dynamics, model_fit
from jaxhybrid.dynamics import Bootstrap
from jaxhybrid.types import Transition
from tests.compilation import AS_SHIPPED

MEMBERS, ROWS, CAPACITY, BATCH, EPOCHS = 3, 200, 256, 16, 10
CONFIGS = {
    "rolling": {"early_stopping": "rolling", "persistency": 0.3, "restore_best": True},
    "patience": {"early_stopping": "patience", "patience": 2, "restore_best": False, "predict_reward": True},
}


def transitions():
    """Two regions of states with opposite laws, a hundred rows each; past them the buffer holds rubbish."""
    keys = jax.random.split(jax.random.key(0), 3)
    row = jnp.arange(CAPACITY)[:, None]
    z, action = jax.random.normal(keys[0], (CAPACITY, 2)), jax.random.normal(keys[1], (CAPACITY, 1))
    change = 0.3 * z[:, ::-1] + 0.5 * action + 0.05 * jax.random.normal(keys[2], (CAPACITY, 2))
    obs, change = z + 4.0 * (row % 2), 2.0 + change * jnp.where(row % 2 == 1, -1.0, 1.0)
    rubbish = jnp.where(row < ROWS, 0.0, jnp.nan)
    return Transition(obs, action, obs[:, 0] - action[:, 0], jnp.ones(CAPACITY), obs + change + rubbish)


def splits():
    """Member 0 trains on one region and validates on the other; the rest see both."""
    row = np.arange(CAPACITY)
    return np.stack([row % 2 == 0] + [row % 5 == m for m in range(1, MEMBERS)], axis=1)


@functools.cache
def compiled(name):
    ensemble = dynamics.make_ensemble(
        2, 1, num_members=MEMBERS, hidden=(8,), learning_rate=0.02, batch_size=BATCH, max_epochs=EPOCHS, **CONFIGS[name]
    )
    return ensemble, jax.jit(ensemble.fit, compiler_options=AS_SHIPPED)


@functools.cache
def fitted(name):
    ensemble, fit = compiled(name)
    before = ensemble.init(jax.random.key(1))
    data = Bootstrap(transitions(), jnp.asarray(splits()), jnp.asarray(ROWS))
    after, metrics = fit(before, data, jax.random.key(2))
    return before, after, metrics


def regression():
    t = transitions()
    x = np.concatenate([t.obs, t.action], axis=1)[:ROWS]
    return x, np.asarray(t.next_obs - t.obs)[:ROWS], np.asarray(t.reward)[:ROWS, None]


def member_errors(name, state, member):
    """Root mean square error of the predicted change."""
    ensemble, _ = compiled(name)
    t = jax.tree.map(lambda leaf: leaf[:ROWS], transitions())
    predict = jax.jit(jax.vmap(lambda o, a: ensemble.predict(state, member, o, a).mean[:2]))
    return float(jnp.sqrt(jnp.mean(jnp.square(predict(t.obs, t.action) - (t.next_obs - t.obs)))))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_normaliser_is_that_of_each_members_own_training_rows(name):
    _, after, _ = fitted(name)
    x, change, reward = regression()
    y = np.concatenate([change, reward], axis=1) if name == "patience" else change
    for m in range(MEMBERS):
        own = ~splits()[:ROWS, m]
        stats = jax.tree.map(lambda leaf, m=m: leaf[m], after.normaliser)
        for values, mean, std in ((x, stats.input_mean, stats.input_std), (y, stats.target_mean, stats.target_std)):
            np.testing.assert_allclose(mean, values[own].mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(std, values[own].std(0), rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_member_whose_validation_loss_rises_stops_alone(name):
    _, after, metrics = fitted(name)
    taken = after.optimiser[0][0].count
    per_epoch = ROWS * 4 // (5 * BATCH)
    assert metrics["epochs"] == EPOCHS
    assert taken[0] <= 0.5 * EPOCHS * per_epoch
    assert max(taken[1:]) == EPOCHS * per_epoch
    assert after.nonfinite == 0


def test_members_learn_the_laws_of_both_regions():
    _, after, metrics = fitted("rolling")
    spread = regression()[1].std()
    for m in range(1, MEMBERS):
        assert member_errors("rolling", after, m) < 0.6 * spread
    assert all(np.isfinite(value) for value in metrics.values())


def test_weights_decide_which_law_is_learnt():
    ensemble, fit = compiled("rolling")
    before, alike, _ = fitted("rolling")

    def weighted(weight):
        data = Bootstrap(transitions(), jnp.asarray(splits()), jnp.asarray(ROWS), weight)
        return fit(before, data, jax.random.key(2))

    first = jnp.arange(CAPACITY) % 2 == 0
    after, metrics = weighted(jnp.where(first, 2.0, 0.0))
    t = transitions()
    predict = jax.jit(jax.vmap(lambda o, a: ensemble.predict(after, jnp.asarray(1), o, a).mean))
    error = jnp.sqrt(jnp.mean(jnp.square(predict(t.obs, t.action) - (t.next_obs - t.obs))[:ROWS], axis=1))
    assert jnp.sqrt(jnp.mean(jnp.square(error[::2]))) < 0.3 * jnp.sqrt(jnp.mean(jnp.square(error[1::2])))
    assert all(np.isfinite(value) for value in metrics.values())
    # Weights of one are no weights.
    jax.tree.map(np.testing.assert_array_equal, weighted(jnp.ones(CAPACITY))[0], alike)


def test_the_best_parameters_come_back_if_asked_for():
    # The misled member was best before it learnt anything.
    before, after, _ = fitted("rolling")
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a[0], b[0]), after.params, before.params)))
    before, last, _ = fitted("patience")
    assert not any(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a[0], b[0]), last.params, before.params)))


def test_the_loss_is_the_density_of_scipy():
    ensemble, fit = compiled("rolling")
    rows = np.array([3, 50, 120])
    # With one row to validate on, the validation loss is that row's.
    held_out = jnp.arange(CAPACITY)[:, None] == rows[None]
    t = transitions()
    after, metrics = fit(ensemble.init(jax.random.key(1)), Bootstrap(t, held_out, jnp.asarray(ROWS)), jax.random.key(2))
    losses = []
    for m, row in enumerate(rows):
        predicted = ensemble.predict(after, jnp.asarray(m), t.obs[row], t.action[row])
        logpdf = scipy.stats.norm.logpdf(t.next_obs[row] - t.obs[row], predicted.mean, np.exp(predicted.log_std))
        # In units of the member's target_std, doubled and without log(2 pi).
        losses.append(np.mean(-2 * logpdf - np.log(2 * np.pi) - 2 * np.log(after.normaliser.target_std[m])))
    assert metrics["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-3)


def test_a_row_that_is_not_finite_never_reaches_the_parameters():
    ensemble, fit = compiled("rolling")
    t, before = transitions(), ensemble.init(jax.random.key(1))
    t = t._replace(next_obs=t.next_obs.at[7].set(jnp.nan))
    after, _ = fit(before, Bootstrap(t, jnp.asarray(splits()), jnp.asarray(ROWS)), jax.random.key(2))
    assert after.nonfinite > 0
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.params, after.bounds, after.optimiser),
        (before.params, before.bounds, before.optimiser),
    )


def judged(losses, *, rolling, first=2.0):
    """Whether one member is active after each epoch, and its best parameters (numbered by epoch) and loss."""

    def state(epoch):
        return model_fit.EnsembleState(jnp.array([float(epoch)]), None, None, None, None)

    progress = model_fit._Progress.first(state(0), jnp.array([first]))
    active = []
    for epoch, loss in enumerate(losses, 1):
        progress = model_fit._judge(
            progress,
            state(epoch),
            jnp.zeros(1),
            jnp.array([loss]),
            rolling=rolling,
            persistency=0.5,
            patience=2,
        )
        active.append(bool(progress.active[0]))
    return active, float(progress.best_params[0]), float(progress.best_loss[0])


def test_rolling_stop_by_hand():
    # R = 1.5 * 2 / 2 + 2 / 2 = 2.5 below 2 * 2; then 2.25, 2.125; the loss 3 makes it 2.5625, above 2.125: stop.
    assert judged([2.0, 2.0, 2.0, 3.0], rolling=True)[0] == [True, True, True, False]
    # Negative losses: R = -2 / 1.5 / 2 - 2 / 2 = -1.67 below -2 / 2; a loss of -1.6 makes it -1.63: stop, for good.
    assert judged([-2.0, -1.6, -9.0], rolling=True, first=-2.0)[0] == [True, False, False]


def test_patience_stop_by_hand():
    # An improvement below one per cent of the best does not count.
    assert judged([1.0, 0.995, 0.99], rolling=False)[0] == [True, True, False]
    assert judged([1.0, 0.995, 0.9, 0.95], rolling=False)[0] == [True, True, True, True]
    # Small ones add up: a loss that falls slowly still falls.
    assert judged([1.0, 0.993, 0.986, 0.979], rolling=False)[0] == [True, True, True, True]


def test_the_best_epoch_is_remembered_while_active():
    assert judged([1.0, 0.5, 0.7, 0.6, 0.1], rolling=False) == ([True, True, True, False, False], 2.0, 0.5)
    assert judged([3.0], rolling=False)[1:] == (0.0, 2.0)
