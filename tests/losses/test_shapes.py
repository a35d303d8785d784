"""A head of one output, ``[1]``, is no number, ``[]``: broadcast against steps it would count each for all."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jaxhybrid.estimators import model_value, per_decision, score_function
from jaxhybrid.losses.multi_step import multi_step_loss
from jaxhybrid.losses.weighted_likelihood import weighted_nll
from jaxhybrid.ops.gaussian import Gaussian, TanhGaussian
from jaxhybrid.trajectories import Trajectory
from jaxhybrid.types import Transition

KEY = jax.random.key(0)
ONES, PAIRS = jnp.ones(3), jnp.ones((3, 2))
TRAJECTORY = Trajectory(PAIRS, PAIRS, ONES, ONES, PAIRS, ONES, ONES)


class Flat:
    """A Gaussian whose log-probability goes through a head, which may make it one of shape ``[1]``."""

    def __init__(self, mean, head):
        self.base, self.head = Gaussian(mean, jnp.zeros_like(mean)), head

    def sample(self, key):
        return self.base.sample(key)

    def log_prob(self, action):
        return self.head(self.base.log_prob(action))


def policy_fn(params, obs, head=lambda x: x):
    return Flat(params * obs, head)


def step_fn(obs, action, key):
    return obs, jnp.sum(action), jnp.ones(())


def scored(**wrong):
    options = {"policy_fn": policy_fn, "step_fn": step_fn, "horizon": 3, "gamma": 0.9, "baseline_fn": jnp.sum}
    return score_function(ONES[:2], ONES[:2], KEY, **(options | wrong))


def valued(**wrong):
    options = {"policy_fn": policy_fn, "q_fn": lambda s, a, k: jnp.sum(a), "gamma": 0.9}
    return model_value(ONES[:2], TRAJECTORY, KEY, **(options | wrong))


def decided(**wrong):
    return per_decision(ONES[:2], TRAJECTORY, KEY, **({"policy_fn": policy_fn, "gamma": 0.9} | wrong))


def likely(log_prob_fn=lambda params, s, a, s2: jnp.sum(s)):
    return weighted_nll(None, TRAJECTORY, KEY, log_prob_fn=log_prob_fn, step_weights=ONES)


def predicted(predict_fn=lambda params, s, a: (s, jnp.sum(a))):
    window = Transition(PAIRS, PAIRS, ONES, ONES, PAIRS), ONES
    return multi_step_loss(None, window, KEY, predict_fn=predict_fn)


def head(x):
    return x[None]


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (scored, {"baseline_fn": lambda s: head(jnp.sum(s))}),
        (scored, {"policy_fn": partial(policy_fn, head=head)}),
        (valued, {"q_fn": lambda s, a, k: head(jnp.sum(a))}),
        (valued, {"policy_fn": partial(policy_fn, head=head)}),
        (decided, {"policy_fn": partial(policy_fn, head=head)}),
        (likely, {"log_prob_fn": lambda params, s, a, s2: head(jnp.sum(s))}),
        (predicted, {"predict_fn": lambda params, s, a: (s, head(jnp.sum(a)))}),
    ],
)
def test_a_head_is_refused_where_a_number_is_meant(call, wrong):
    call()
    with pytest.raises(AssertionError, match="shape"):
        call(**wrong)


@pytest.mark.parametrize("make", [Gaussian, TanhGaussian])
def test_a_spread_of_another_shape_is_refused_where_it_would_be_summed(make):
    narrow = make(jnp.zeros(2), jnp.zeros(1))
    for method in (
        narrow.entropy,
        partial(narrow.log_prob, jnp.zeros(2)),
        partial(narrow.log_prob_of_noise, jnp.zeros(2)),
        partial(narrow.sample_and_log_prob, KEY),
        partial(narrow.kl, make(jnp.zeros(2), jnp.zeros(2))),
        partial(make(jnp.zeros(2), jnp.zeros(2)).kl, narrow),
    ):
        with pytest.raises(AssertionError, match="shape"):
            method()
