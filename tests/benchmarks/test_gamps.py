"""The benchmark of gradient-aware search: what it says of the estimators, and that both iterations are the same."""

import json

import jax
import numpy as np
import pytest

from benchmarks import gamps
from benchmarks._gamps import gradients, iteration, limits
from jaxhybrid.envs import finite
from jaxhybrid.errors import InputError


def test_small_run(tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["--preset", "smoke", "--datasets", "30", "--trajectories", "50", "--out", str(out)]
    assert gamps.main(argv) == 0
    results = json.loads((out / "results.json").read_text())
    rows = {row["estimator"]: row for row in results["gradients"]}
    assert set(rows) == set(gradients._ESTIMATORS)
    # The likely model is wrong in the upper area; neither more data nor real states can mend its values.
    assert rows["MVG, gradient-aware model"]["cosine"] > rows["MVG, likely model"]["cosine"] + 0.05
    assert rows["MFG, PGT"]["mse"] < rows["MFG, REINFORCE"]["mse"]
    # Fully model-based gradients vary little, so their means show whether the exact limits are right.
    for name in ("FMG, likely model", "FMG, gradient-aware model"):
        assert rows[name]["bias"] == pytest.approx(rows[name]["limit_bias"], rel=5e-3)
    assert max(row["limit_z"] for name, row in rows.items() if name.startswith("MFG")) < 5
    assert "MVG" in capsys.readouterr().out


def enumerated(problem, goal, steps, probs, norms):
    """The sums over a recording, path by path."""
    transition, reward, start, gamma = (np.asarray(x) for x in problem)
    pairs, scores, total = np.zeros(probs.shape), np.zeros(probs.shape), 0.0

    def walk(state, t, chance, score):
        nonlocal total
        if state == goal or t == steps:
            return
        for action in range(probs.shape[1]):
            taken, summed = chance * probs[state, action], score + norms[state, action]
            pairs[state, action] += gamma**t * taken
            scores[state, action] += gamma**t * taken * summed
            total += gamma**t * taken * reward[state, action]
            for following in range(len(start)):
                walk(following, t + 1, taken * transition[state, action, following], summed)

    for state in range(len(start)):
        walk(state, 0, start[state], 0.0)
    return pairs, scores, total


@pytest.mark.float64
def test_expected_weights_are_those_of_every_path():
    keys = jax.random.split(jax.random.key(0), 3)
    problem = finite.random_problem(keys[0], 3, 2, gamma=0.8)
    probs = jax.nn.softmax(jax.random.normal(keys[1], (3, 2)))
    norms = jax.random.uniform(keys[2], (3, 2))
    found = jax.jit(limits._visits, static_argnums=(1, 2))(problem, 2, 4, probs, norms, problem.gamma)
    for value, path_sum in zip(found, enumerated(problem, 2, 4, np.asarray(probs), np.asarray(norms)), strict=True):
        np.testing.assert_allclose(value, path_sum, rtol=1e-12)


def test_both_iterations_compute_the_same():
    found = iteration.speed(2000, 1)
    assert found["weight_difference"] < 1e-3
    assert found["gradient_difference"] < 0.05
    assert found["antithetic_gradient_difference"] < 0.05
    assert found["ratio"] > 0


def test_streamed_norms_need_little_memory():
    found = iteration.score_memory(32)
    assert found["streamed_by_64_megabytes"] < found["gradients_at_once_megabytes"] / 10


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["--datasets", "1"], "datasets"),
        (["--trajectories", "1"], "trajectories"),
        (["--seed", "-1"], "seed"),
        (["--out", ""], "out"),
    ],
)
def test_bad_arguments_are_refused(argv, field):
    with pytest.raises(InputError, match=rf"^{field}"):
        gamps.main(argv)
