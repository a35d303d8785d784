from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import lqr
from jaxhybrid.losses import critic
from jaxhybrid.types import Transition
from tests.oracles import check_monte_carlo_mean, linear_policy, lqr_step

KEY = jax.random.key(0)


class Always(NamedTuple):
    """A policy that takes one action, with a log-probability made up for the arithmetic."""

    action: jax.Array
    log_prob: float = -1.0

    def sample(self, key):
        return self.action

    def sample_and_log_prob(self, key):
        return self.action, self.log_prob


def test_squared_error_sums_over_critics():
    example = (jnp.array([2.0]), jnp.array([3.0]), jnp.array(5.0))
    # Critics 6 and 12 against 5: 1 + 49, and slopes 2 * 1 * 6 + 2 * 7 * 6 over the params (1, 2).
    loss, aux = critic.squared_error(jnp.array([1.0, 2.0]), example, KEY, q_fn=lambda p, s, a: p * s[0] * a[0])
    assert loss == 50
    assert aux["q"] == 9
    grads = jax.grad(lambda p: critic.squared_error(p, example, KEY, q_fn=lambda p, s, a: p * s[0] * a[0])[0])
    np.testing.assert_allclose(grads(jnp.array([1.0, 2.0])), [12.0, 84.0])
    single, _ = critic.squared_error(jnp.array(1.0), example, KEY, q_fn=lambda p, s, a: p * s[0] * a[0])
    assert single == 1


def test_squared_error_refuses_a_batch_of_targets():
    with pytest.raises(AssertionError):
        critic.squared_error(1.0, (jnp.ones(1), jnp.ones(1), jnp.ones(2)), KEY, q_fn=lambda p, s, a: p * s[0])


# From s = 2, a = 1: 2 -> 3 -> 4 with rewards 2, 3. Critics Q_c(s, a) = c s for c = 1, 2; entropy bonus 0.5.
MODEL = {
    "policy_fn": lambda s: Always(jnp.ones(1)),
    "step_fn": lambda s, a, noise: (s + a, s[0], jnp.ones(())),
    "q_fn": lambda s, a: jnp.array([1.0, 2.0]) * s[0],
    "horizon": 2,
    "gamma": 0.5,
    "temperature": 0.5,
}


def transition(discount=1.0):
    return Transition(jnp.array([1.0]), jnp.array([1.0]), jnp.array(3.0), jnp.array(discount), jnp.array([2.0]))


def test_expansion_values_by_hand():
    values = critic.expansion_values(transition(), KEY, **MODEL)
    expected = [
        [3 + 0.5 * 2.5, 3 + 0.5 * 4.5],  # 3 + gamma (c 2 + 0.5)
        [3 + 0.5 * 2.5 + 0.25 * 3.5, 3 + 0.5 * 2.5 + 0.25 * 6.5],  # the step's reward 2 and its bonus 0.5
        [3 + 0.5 * 2.5 + 0.25 * 3.5 + 0.125 * 4.5, 3 + 0.5 * 2.5 + 0.25 * 3.5 + 0.125 * 8.5],
    ]
    np.testing.assert_allclose(values, expected)
    without = critic.expansion_values(transition(), KEY, **MODEL, path_entropy=False)
    np.testing.assert_allclose(without[1:, 0], [3 + 0.5 * 2 + 0.25 * 3.5, 3 + 0.5 * 2 + 0.25 * 3 + 0.125 * 4.5])
    one_step = critic.expansion_values(transition(), KEY, **(MODEL | {"horizon": 0}))
    np.testing.assert_allclose(one_step, expected[:1])


def test_a_terminated_transition_has_one_target_at_every_depth():
    np.testing.assert_allclose(critic.expansion_values(transition(0.0), KEY, **MODEL), np.full((3, 2), 3.0))


def test_released_discount_forgets_that_a_path_has_ended():
    values = critic.expansion_values(transition(0.0), KEY, **MODEL, cumulative_discount=False)
    # Depth 1 drops the reward after the end, but not the bootstrap; depth 2 is paid again.
    np.testing.assert_allclose(values[:, 0], [3.0, 3 + 0.25 * 3.5, 3 + 0.25 * 3.5 + 0.125 * 4.5])


def test_recorded_noise_takes_the_place_of_keys():
    model = MODEL | {"step_fn": lambda s, a, noise: (s + noise, noise, jnp.ones(()))}
    values = critic.expansion_values(transition(), KEY, **model, step_noise=jnp.array([1.0, 10.0]))
    assert values[2, 0] == pytest.approx(3 + 0.5 * 1.5 + 0.25 * 10.5 + 0.125 * 13.5)


@pytest.mark.float64
def test_every_depth_estimates_the_exact_value_with_a_perfect_model_and_critic():
    problem = lqr.random_problem(jax.random.key(0), 2, 1, gamma=0.9, process_noise=0.2)
    gain, noise_std = jnp.array([[0.1, -0.2]]), 0.3
    step_fn, obs, action = lqr_step(problem), jnp.array([1.0, -0.5]), jnp.array([0.4])

    def one(key, gamma):
        step_key, key = jax.random.split(key)
        next_obs, reward, discount = step_fn(obs, action, step_key)
        return critic.expansion_values(
            Transition(obs, action, reward, discount, next_obs),
            key,
            policy_fn=partial(linear_policy(noise_std), gain),
            step_fn=step_fn,
            q_fn=partial(lqr.q_value, problem, gain, noise_std=noise_std),
            horizon=2,
            gamma=gamma,
        )[:, 0]

    draws = jax.jit(jax.vmap(one, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(1), 20_000)
    truth = jnp.full(3, lqr.q_value(problem, gain, obs, action, noise_std))
    check_monte_carlo_mean(draws(keys, 0.9), truth)
    with pytest.raises(AssertionError, match="bias of"):
        check_monte_carlo_mean(draws(keys, 1.0), truth)


def test_steve_target_by_hand():
    # [M, H + 1, C]. Depth 0: values 1, 3, 1, 3 over both models: mean 2, variance 1, critics' means 1 and 3.
    # Depth 1: values 2, 8, 4, 6: mean 5, variance 5, critics' means 3 and 7. Floor 1: weights 1/2 and 1/6 of 2/3.
    values = jnp.array([[[1.0, 3.0], [2.0, 8.0]], [[1.0, 3.0], [4.0, 6.0]]])
    target, weights = critic.steve_target(values, epsilon=1.0)
    np.testing.assert_allclose(weights, [0.75, 0.25], rtol=1e-6)
    assert target == pytest.approx(0.75 * 1 + 0.25 * 3)
    averaged, _ = critic.steve_target(values, epsilon=1.0, pessimistic=False)
    assert averaged == pytest.approx(0.75 * 2 + 0.25 * 5)


def test_temperature_rises_while_the_entropy_is_too_small():
    log_temperature, target = jnp.log(0.2), -2.0

    def slope(log_prob):
        loss = partial(critic.entropy_temperature_loss, target_entropy=target)
        return jax.grad(lambda t: loss(t, jnp.asarray(log_prob), KEY)[0])(log_temperature)

    # -(log pi + target): at log pi = 3 the entropy -3 is below -2, so descent raises the temperature.
    assert slope(3.0) == pytest.approx(-1.0)
    assert slope(2.0) == 0.0
    aux = critic.entropy_temperature_loss(log_temperature, jnp.asarray(3.0), KEY, target_entropy=target)[1]
    assert aux["temperature"] == pytest.approx(0.2)


def test_soft_values_agree_at_every_depth():
    """A critic that is exact for the soft value makes all depths agree; without the bonus on the path they do not."""
    # One state, reward 1, one action of log-probability -1 and temperature 0.5: soft Q = 1 + gamma (Q + 0.5).
    gamma, bonus = 0.5, 0.5
    q = (1 + gamma * bonus) / (1 - gamma)
    model = MODEL | {
        "step_fn": lambda s, a, noise: (s, jnp.ones(()), jnp.ones(())),
        "q_fn": lambda s, a: jnp.asarray(q),
    }
    still = transition()._replace(reward=jnp.array(1.0), next_obs=jnp.array([1.0]))
    np.testing.assert_allclose(critic.expansion_values(still, KEY, **model), np.full((3, 1), q), rtol=1e-6)
    without = critic.expansion_values(still, KEY, **model, path_entropy=False)
    assert without[1, 0] < q - 0.1


def test_double_q_targets_by_hand():
    reward, discount = jnp.array([1.0, -0.5, 2.0]), jnp.array([1.0, 1.0, 0.0])
    # The fast values choose 1, 0 and whatever; the slow ones value these at 4 and 3.
    next_q = jnp.array([[0.0, 1.0], [2.0, 1.0], [5.0, 6.0]])
    slow = jnp.array([[9.0, 4.0], [3.0, 8.0], [jnp.nan, jnp.nan]])
    targets = critic.double_q_targets(reward, discount, next_q, slow, gamma=0.5)
    np.testing.assert_allclose(targets, [1.0 + 0.5 * 4.0, -0.5 + 0.5 * 3.0, 2.0])


def sequence(seed=0):
    rng = np.random.default_rng(seed)
    inputs, action = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32), jnp.array([1, 0, 1, 1])
    return inputs, action, jnp.asarray(rng.normal(size=4), jnp.float32), jnp.array([1.0, 1.0, 1.0, 0.0])


def memory_q(params, inputs):
    # A value that depends on all that came before.
    return jnp.cumsum(inputs, axis=0) @ params


def test_sequence_error_is_the_mean_over_the_steps_of_a_batch():
    params = jnp.array([[0.3, -0.7], [0.2, 0.5]])
    inputs, action, target, _ = sequence()
    q = np.cumsum(np.asarray(inputs), axis=0) @ np.asarray(params)
    errors = [(q[t, action[t]] - target[t]) ** 2 for t in range(3)]
    loss, aux = critic.sequence_squared_error(params, sequence(), KEY, q_fn=memory_q)
    assert float(loss) == pytest.approx(np.mean(errors), rel=1e-5)
    assert float(aux["q"]) == pytest.approx(np.mean([q[t, action[t]] for t in range(3)]), rel=1e-5)
    halved, _ = critic.sequence_squared_error(params, sequence(), KEY, q_fn=memory_q, num_steps=6.0)
    assert float(halved) == pytest.approx(float(loss) / 2.0, rel=1e-6)


def test_a_padded_step_changes_nothing():
    inputs, action, target, mask = sequence()
    grad_fn = jax.jit(
        jax.value_and_grad(lambda p, example: critic.sequence_squared_error(p, example, KEY, q_fn=memory_q)[0])
    )
    clean = grad_fn(jnp.ones((2, 2)), (inputs, action, target, mask))
    spoilt = (inputs.at[3].set(1e3), action.at[3].set(0), target.at[3].set(jnp.nan), mask)
    jax.tree.map(np.testing.assert_array_equal, clean, grad_fn(jnp.ones((2, 2)), spoilt))
