import dataclasses
import functools
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxhybrid.context_networks import ContextNetworks, Heads
from jaxhybrid.envs import city, city_trials
from jaxhybrid.errors import InputError
from jaxhybrid.networks import Network
from jaxhybrid.systems import dream, dream_joined, dream_losses, dream_parts, dream_trials, dream_updates
from jaxhybrid.systems.dream_config import VARIANTS
from jaxhybrid.trials import Episode, Trial

KEY = jax.random.key(0)
HORIZON = 20


def config(**changes):
    return dataclasses.replace(dream.presets["smoke"], **changes)


def environment(task="distraction"):
    return city_trials.environment(city.make(task))


def compiled():
    """The first state and an iteration, compiled in haste: the program is large, and runs for a moment."""
    system = dream.make(config(), environment())
    hasty = {"xla_backend_optimization_level": 0}
    state = jax.jit(system.init).lower(KEY).compile(compiler_options=hasty)(KEY)
    return state, jax.jit(system.step).lower(state, None).compile(compiler_options=hasty)


@functools.cache
def run(num_steps=2):
    """States before and after each iteration, and the metrics of each."""
    state, step = compiled()
    states, metrics = [state], []
    for _ in range(num_steps):
        state, logged = step(states[-1], None)
        states.append(state)
        metrics.append(logged)
    return states, metrics


@functools.cache
def parts(**changes):
    """With a memory in both agents; the iterations of `run` have none in the one that executes."""
    return dream_parts.make_parts(config(recurrent=True, **changes), city.make("distraction"))


@functools.cache
def recorded(**changes):
    """Agents, and four trials of theirs with many random actions."""
    built = parts(**changes)
    agents = jax.jit(partial(dream_parts.init_agents, built))(KEY)
    ids = jnp.array([3, 7, 100, 400])
    goals = jnp.asarray(built.town.goals, jnp.int32)
    tasks = dream_trials.Task(ids, goals, goals, ids % 2 == 1)

    @jax.jit
    def play(agents, epsilon):
        params = {name: agent.params for name, agent in agents.items()}
        one = partial(dream_trials.play, built, params, epsilon=(epsilon, epsilon))
        return jax.vmap(one)(tasks, jax.random.split(KEY, 4))

    return agents, tasks, play


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_agent_learns_as_often_as_its_steps_pay_for():
    states, metrics = run()
    for state, logged in zip(states[1:], metrics):
        for name, agent in state.agents.items():
            # Learning starts within the first round; 16 steps pay for an update.
            assert agent.updates == agent.steps // 16 == logged[f"{name}/updates"]
            assert agent.guard.refused == 0
        assert logged["env/steps"] == sum(agent.steps for agent in state.agents.values())
    lengths = [jnp.sum(states[-1].store.trials.execution.mask), jnp.sum(states[-1].store.trials.exploration.mask)]
    # The ring holds the eight trials of the last iteration.
    assert lengths[0] == states[2].agents["execution"].steps - states[1].agents["execution"].steps
    assert lengths[1] == states[2].agents["exploration"].steps - states[1].agents["exploration"].steps
    assert (states[-1].trials, states[-1].store.added) == (16, 16)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), state) for state in states]
    assert shapes[0] == shapes[1] == shapes[2]
    assert all(value.shape == () for value in metrics[-1].values())
    assert np.isfinite([float(value) for value in metrics[-1].values()]).all()


APART = """
import sys
import jax, numpy as np
from tests.systems.test_dream import compiled

with jax.set_mesh(jax.sharding.Mesh(jax.devices(), ("batch",))):
    state, step = compiled()
    state, metrics = step(state, None)
assert "all-gather" in step.as_text(), "the devices compute all the same"
np.savez(sys.argv[1], *jax.tree.leaves(state.agents))
"""


def test_agents_that_learn_on_devices_of_their_own_learn_the_same_to_the_bit(tmp_path):
    file = tmp_path / "apart.npz"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", APART, str(file)], env=environment, timeout=600, check=True)
    leaves = jax.tree.leaves(run()[0][1].agents)
    with np.load(file) as apart:
        assert len(apart) == len(leaves)
        for name, leaf in zip(apart, leaves, strict=True):
            np.testing.assert_array_equal(apart[name], leaf)


@pytest.mark.parametrize(
    ("changes", "agents"),
    [
        ({"method": "no_exploration"}, {"exploration", "execution"}),
        ({"method": "rl2", "recurrent": True}, {"execution"}),
        (
            {"gradient": "augment", "target_context": "id"} | VARIANTS["planning-mixed"],
            {"exploration", "execution", "dynamics"},
        ),
        ({"observation": "picture", "recurrent": True}, {"exploration", "execution"}),
        ({"observation": "picture"} | VARIANTS["planning"], {"exploration", "execution"}),
    ],
    ids=["no exploration", "rl2", "every extension", "pictures", "pictures, planning"],
)
def test_an_iteration_of_every_method_can_be_repeated(changes, agents):
    # Traced and not compiled: what goes in comes out.
    system = dream.make(config(**changes), environment("map"))
    state = jax.eval_shape(system.init, KEY)
    after, metrics = jax.eval_shape(system.step, state, None)
    assert after == state and set(state.agents) == agents
    assert all(value.shape == () for value in metrics.values())


def test_a_trial_is_played_by_the_rules():
    _, tasks, play = recorded()
    trials = play(recorded()[0], 0.9)
    town = parts().town
    for i in range(4):
        for episode, goal, exploring in (
            (trials.exploration, tasks.hidden_goal[i], True),
            (trials.execution, tasks.goal[i], False),
        ):
            obs, action, reward, discount, mask = (np.asarray(leaf[i]) for leaf in episode)
            length = int(mask.sum())
            assert mask.tolist() == [1.0] * length + [0.0] * (HORIZON - length)
            state, seen = city.reset(town, int(tasks.task_id[i]), goal, exploring=exploring)
            for t in range(length):
                np.testing.assert_array_equal(obs[t], seen)
                state, after = city.step(town, state, jnp.asarray(action[t]))
                seen = after.obs
                assert reward[t] == after.reward
                assert bool(after.terminated) == (t == length - 1) == (discount[t] == 0)
            assert np.all(obs[length:] == np.asarray(seen)) and not reward[length:].any()


def test_the_context_is_the_number_or_what_was_explored():
    agents, tasks, play = recorded()
    blind = jax.tree.map(jnp.zeros_like, agents["execution"].params["decoder"])
    changed = agents["execution"]._replace(params=agents["execution"].params | {"decoder": blind})
    first, second = (play(each, 0.0).execution.action for each in (agents, agents | {"execution": changed}))
    by_id = np.asarray(tasks.by_id)
    same(first[by_id], second[by_id])
    built = parts()
    code = dream_trials.code_of(
        built, {"execution": changed.params}, jax.tree.map(lambda x: x[0], play(agents, 0.0)).exploration
    )
    assert not np.any(code)


def by_hand(fast, slow, episodes, reward, centre):
    """Mean squared error of double Q-learning, step by step."""
    value, advantage = (np.asarray(x, np.float64) for x in fast)
    slow_value, slow_advantage = (np.asarray(x, np.float64) for x in slow)
    errors = []
    for b in range(value.shape[0]):
        for t in np.flatnonzero(np.asarray(episodes.mask[b])):
            q = value[b, t] + advantage[b, t] - centre(advantage[:, :-1], advantage[b, t])
            best = int(np.argmax(advantage[b, t + 1]))
            after = slow_value[b, t + 1] + slow_advantage[b, t + 1][best]
            after -= centre(slow_advantage[:, 1:], slow_advantage[b, t + 1])
            target = float(reward[b, t]) + 0.99 * float(episodes.discount[b, t]) * after
            errors.append((q[int(episodes.action[b, t])] - target) ** 2)
    return np.mean(errors)


@pytest.mark.parametrize("mean", ["state", "batch"])
def test_the_temporal_difference_by_hand(mean):
    rng = np.random.default_rng(0)
    fast, slow = (Heads(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 4), (2, 4, 3)))) for _ in range(2))
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    discount = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    episodes = Episode(jnp.zeros((2, 4, 3), int), jnp.array([[0, 2, 1], [1, 1, 0]]), mask, discount, mask)
    reward = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    loss, _ = dream_losses.td_loss(config(dueling_mean=mean), fast, slow, episodes, reward, jnp.array(2.5))
    centre = {"state": lambda whole, own: own.mean(), "batch": lambda whole, own: whole.mean()}[mean]
    assert float(loss) == pytest.approx(by_hand(fast, slow, episodes, reward, centre), rel=1e-4)


def with_slow(agents):
    """The same agents with slow parameters of their own, so that these cannot be taken for the fast ones."""

    def moved(agent, key):
        leaves, tree = jax.tree.flatten(agent.params)
        keys = jax.random.split(key, len(leaves))
        slow = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
        return agent._replace(target_params=jax.tree.unflatten(tree, slow))

    keys = jax.random.split(jax.random.key(7), len(agents))
    return {name: moved(agent, key) for (name, agent), key in zip(agents.items(), keys)}


@pytest.mark.parametrize("target_context", ["matched", "id"])
def test_an_update_bootstraps_from_slow_values_in_the_context_that_is_asked_for(target_context):
    agents, _, play = recorded()
    trials, agents, built = play(agents, 0.9), with_slow(agents), parts()
    execute = updates(**({} if target_context == "matched" else {"target_context": "id"}))[1]
    agent, episodes = agents["execution"], trials.execution
    fast_key, slow_key, _ = jax.random.split(KEY, 3)
    explored = trials.exploration.lengths

    def heads(params, by_id, key):
        told = built.told_fn(params, trials.task_id, key)
        read = jax.vmap(partial(built.nets.decoder.apply, params["decoder"]))(*trials.exploration[:2])
        code = told if by_id else jnp.stack([codes[n] for codes, n in zip(read, explored)])
        return built.nets.execution.apply(params["policy"], episodes.obs, trials.goal, code)

    def expected(by_id):
        slow = heads(agent.target_params, by_id or target_context == "id", slow_key)
        fast = heads(agent.params, by_id, fast_key)
        return by_hand(fast, slow, episodes, episodes.reward, lambda batch, own: own.mean())

    for by_id in (True, False):
        found = execute(agents, (trials, episodes), jnp.array(by_id), jnp.array(16), KEY)[1]["td"]
        assert float(found) == pytest.approx(expected(by_id), rel=1e-3)


def test_an_update_of_the_explorer_bootstraps_from_its_slow_values():
    agents, _, play = recorded()
    trials, agents, built = play(agents, 0.9), with_slow(agents), parts()
    agent, known, episodes = agents["exploration"], agents["execution"].params, trials.exploration
    previous = dream_trials.previous_actions(episodes)
    fast, slow = (
        built.nets.exploration.apply(params["policy"], episodes.obs, previous)
        for params in (agent.params, agent.target_params)
    )
    read = jax.vmap(partial(built.nets.decoder.apply, known["decoder"]))(*episodes[:2])
    told = built.nets.problem.apply(known["problem"], trials.task_id)
    errors = np.sum(np.square(np.asarray(read) - np.asarray(told)[:, None]), axis=-1)
    reward = errors[:, :-1] - errors[:, 1:] - 0.1
    found = updates()[0](agents, trials, jnp.array(16))[1]["td"]
    wanted = by_hand(fast, slow, episodes, reward, lambda batch, own: own.mean())
    assert float(found) == pytest.approx(wanted, rel=1e-3)


def spoilt(trials):
    """The same trials with something else in their padding."""

    def episode(e):
        ended = jnp.concatenate([jnp.zeros((4, 1)), 1.0 - e.mask], axis=1)[..., None]
        return e._replace(
            obs=jnp.where((ended > 0) & (jnp.arange(3) < 2)[None, None], 8 - e.obs, e.obs),
            action=jnp.where(e.mask > 0, e.action, 5),
            reward=jnp.where(e.mask > 0, e.reward, jnp.nan),
        )

    return trials._replace(exploration=episode(trials.exploration), execution=episode(trials.execution))


@functools.cache
def updates(**changes):
    built = parts(**changes)
    return (
        jax.jit(partial(dream_updates.exploration_update, built)),
        jax.jit(partial(dream_updates.execution_update, built)),
    )


def test_a_padded_step_changes_nothing_to_the_bit():
    agents, _, play = recorded()
    trials = play(agents, 0.9)
    lengths = np.asarray(jnp.sum(trials.exploration.mask, axis=1))
    assert lengths.min() < HORIZON
    explore, execute = updates()
    step = jnp.array(16)
    same(explore(agents, trials, step), explore(agents, spoilt(trials), step))
    for by_id in (True, False):
        clean, other = (
            execute(agents, (each, each.execution), jnp.array(by_id), step, KEY) for each in (trials, spoilt(trials))
        )
        same(clean, other)
        # What the updates did is not nothing.
        moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), clean[0].params, agents["execution"].params)
        assert all(any(jax.tree.leaves(moved[name])) for name in ("policy", "problem", "decoder"))


def test_an_update_by_number_does_not_look_at_the_exploration():
    agents, _, play = recorded()
    trials = play(agents, 0.9)
    other = trials._replace(exploration=jax.tree.map(lambda x: x[::-1], trials.exploration))
    _, execute = updates()
    for by_id in (True, False):
        first, second = (
            execute(agents, (each, trials.execution), jnp.array(by_id), jnp.array(16), KEY)[1]
            for each in (trials, other)
        )
        assert (first["td"] == second["td"]) == by_id
        assert first["decoder"] != second["decoder"]


def test_the_reward_of_exploration_is_what_it_tells():
    agents, _, play = recorded()
    trials = play(agents, 0.9)
    _, metrics = updates()[0](agents, trials, jnp.array(16))
    built, known = parts(), agents["execution"].params
    total = 0.0
    for i in range(4):
        episode = jax.tree.map(lambda x, i=i: x[i], trials.exploration)
        codes = built.nets.decoder.apply(known["decoder"], episode.obs, episode.action)
        code = built.nets.problem.apply(known["problem"], trials.task_id[i])
        length = int(jnp.sum(episode.mask))
        gained = jnp.sum((codes[0] - code) ** 2) - jnp.sum((codes[length] - code) ** 2)
        total += float(gained) - 0.1 * length
    steps = float(jnp.sum(trials.exploration.mask))
    assert float(metrics["reward"]) == pytest.approx(total / steps, rel=1e-3, abs=1e-5)


def test_slow_parameters_are_copied_every_interval_and_start_as_asked():
    tiny = Network(lambda key: jax.random.normal(key, (2,)), lambda params: params)
    for init_target in ("copy", "random"):
        built = dream_parts.make_parts(config(init_target=init_target), city.make("distraction"))
        built = built._replace(nets=ContextNetworks(tiny, tiny, tiny, tiny))
        agents = dream_parts.init_agents(built, KEY)
        same_start = [np.all(agent.params["policy"] == agent.target_params["policy"]) for agent in agents.values()]
        assert same_start == [init_target == "copy"] * 2
        assert np.all(agents["execution"].params["problem"] != agents["execution"].params["decoder"])
    # Smoke: an update every 16 steps, a copy every 32.
    agent = agents["exploration"]
    after, taken = dream_updates._stepped(built, "exploration", agent, agent.params, jnp.array(16))
    assert taken["grad_norm"] > 0 and 0 < taken["update_ratio"] < 1
    same(after.target_params, agent.target_params)
    again, _ = dream_updates._stepped(built, "exploration", after, agent.params, jnp.array(32))
    same(again.target_params, again.params)
    assert again.updates == 2 and np.any(again.params["policy"] != agent.params["policy"])
    # One vector of all layers is clipped and stepped on as the layers are.
    optimiser = built.optimisers["exploration"]
    gradient = jax.tree.map(lambda x: 100.0 * x, agent.params)
    updates, _ = optimiser.update(gradient, optimiser.init(agent.params), agent.params)
    stepped, _ = dream_updates._stepped(built, "exploration", agent, gradient, jnp.array(16))
    for name, expected in optax.apply_updates(agent.params, updates).items():
        np.testing.assert_allclose(stepped.params[name], expected, rtol=1e-6)


def test_random_actions_fall_linearly_with_the_steps_of_the_agent_that_acts(monkeypatch):
    seen = []
    monkeypatch.setattr(dream.dream_trials, "play", lambda *_, epsilon: seen.append(epsilon))
    built = SimpleNamespace(config=config(epsilon_start=0.8, epsilon_end=0.2))  # over 100 steps
    for explorer, executor, shares in ((0, 50, (0.8, 0.5)), (25, 100, (0.65, 0.2)), (1000, 0, (0.2, 0.8))):
        steps = {"exploration": explorer, "execution": executor}
        agents = {name: SimpleNamespace(params=None, steps=jnp.array(n)) for name, n in steps.items()}
        dream._play(built, agents, None, KEY)
        assert tuple(map(float, seen[-1])) == pytest.approx(shares)
    # One agent for both.
    dream._play(built, {"execution": agents["execution"]}, None, KEY)
    assert tuple(map(float, seen[-1])) == pytest.approx((0.8, 0.8))


@pytest.fixture
def counted(monkeypatch):
    """Updates that only log the step that pays for them, and whether they are by number."""

    def update(name):
        def one(parts, agents, batch, *inputs):
            agent = agents[name]
            by_id, own_step = inputs[:2] if name == "execution" else (False, inputs[0])
            logged = dict.fromkeys(dream_updates.metric_names(parts.config, name), jnp.zeros(()))
            logged |= {"grad_norm": jnp.asarray(own_step, jnp.float32), "update_ratio": jnp.asarray(by_id, jnp.float32)}
            return agent._replace(updates=agent.updates + 1), logged

        return one

    for name in ("exploration", "execution", "dynamics"):
        monkeypatch.setattr(dream.dream_updates, f"{name}_update", update(name))
    monkeypatch.setattr(dream.records, "sample_trials", lambda *_, **__: None)
    monkeypatch.setattr(dream.records, "step_ends", lambda _: None)
    monkeypatch.setattr(dream, "_sampled", lambda *_: None)


def learnt(name, *, added, before, lengths, **changes):
    """Updates of an agent in a round of trials of these lengths, and sums of the steps and contexts of each."""
    built = SimpleNamespace(config=config(gradient="augment", exploration_starts=40, execution_starts=30, **changes))
    episodes = SimpleNamespace(lengths=jnp.array(lengths))
    tasks = SimpleNamespace(by_id=jnp.array([False, True, False]))
    played = tasks, SimpleNamespace(exploration=episodes, execution=episodes)
    zero = jnp.zeros((), jnp.int32)
    learns = {
        "exploration": dream._explorer_learns,
        "execution": dream._executor_learns,
        "dynamics": dream._model_learns,
    }
    agents = dict.fromkeys(learns, dream_parts.Agent({}, {}, None, jnp.array(before), zero, None))
    agent, sums = learns[name](built, agents, SimpleNamespace(added=jnp.array(added)), played, KEY)
    assert agent.steps == before + sum(lengths)
    assert {int(count) for _, count in sums.values()} == {int(agent.updates)}
    return int(agent.updates), float(sums["grad_norm"][0]), float(sums["update_ratio"][0])


def test_every_update_is_paid_for_by_a_step_of_its_own_whose_trial_decides_the_context(counted):
    # An update every 16 steps: after 40 these are steps 48, 64, 80 and 96, of trials that end at 47, 80 and 100.
    paid = {"before": 40, "lengths": [7, 33, 20], "added": 100}
    assert learnt("exploration", **paid) == (4, 288.0, 0.0)
    assert learnt("execution", **paid) == (4, 288.0, 3.0)
    assert learnt("dynamics", **paid) == (4, 288.0, 0.0)
    # A step that ends a trial is still its own.
    assert learnt("execution", before=0, lengths=[16, 16, 15], added=100) == (2, 48.0, 1.0)


def test_nobody_learns_before_there_is_enough_to_learn_from(counted):
    after = {"before": 0, "lengths": [16, 0, 16]}
    assert learnt("exploration", added=39, **after)[0] == 0
    assert learnt("exploration", added=40, **after)[0] == 2
    for name in ("execution", "dynamics"):
        # Steps, or trials of an agent with a memory.
        assert learnt(name, added=1, before=0, lengths=[16, 0, 13])[0] == 0
        assert learnt(name, added=1, before=0, lengths=[16, 0, 14])[0] == 1
        assert learnt(name, added=29, recurrent=True, **after)[0] == 0
        assert learnt(name, added=30, recurrent=True, **after)[0] == 2


def episodes_of(*actions):
    """Episodes on task 0 that start where every one does, padded to four steps; each step costs 0.1."""

    def one(text):
        town = parts().town
        state, seen = city.reset(town, jnp.array(0), jnp.array([8, 8]), exploring=True)
        obs = [seen.tolist()]
        for action in map(int, text):
            state, after = city.step(town, state, jnp.array(action))
            obs.append(after.obs.tolist())
        obs += [obs[-1]] * (5 - len(obs))
        mask = [1.0] * len(text) + [0.0] * (4 - len(text))
        action = [*map(int, text)] + [0] * (4 - len(text))
        return Episode(*map(jnp.asarray, (obs, action, [-0.1 * m for m in mask], mask, mask)))

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(one, actions))


def test_what_is_logged_of_trials_is_counted_by_hand(monkeypatch):
    # Of these steps a ride and its way back lead somewhere; riding where no bus stops does not.
    explored, executed = episodes_of("5", "3553", "36"), episodes_of("355", "0", "355")
    trials = Trial(jnp.zeros(3, int), jnp.zeros((3, 2), int), explored, executed)
    rides = {"collect/exploration_rides": (2, 7), "collect/execution_rides": (4, 7)}
    means = {"collect/return": (-0.7, 3), "collect/exploration_steps": (7, 3), "collect/execution_steps": (7, 3)}
    for name, (total, count) in dream._played_metrics(trials).items():
        assert (float(total), float(count)) == pytest.approx((rides | means)[name])
    monkeypatch.setattr(dream, "test_trials", lambda *_: {"test": trials, "train": trials})
    found = dream._tests(None, None)
    # Three first actions, one of which is another one; two alike at the second step and at the third.
    entropy = 3 / 7 * -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    for phase in ("test", "train"):
        assert float(found[f"{phase}/return"]) == pytest.approx(-0.7 / 3)
        assert float(found[f"{phase}/exploration_steps"]) == pytest.approx(7 / 3)
        assert float(found[f"{phase}/action_entropy"]) == pytest.approx(entropy)


def test_what_is_explained_is_the_share_of_the_error_that_an_exploration_takes_away():
    for logged in run()[1]:
        share = 1.0 - logged["execution/last_error"] / logged["execution/first_error"]
        assert float(logged["execution/explained"]) == pytest.approx(float(share), abs=1e-6)


def test_every_task_of_a_batch_has_noise_of_its_own():
    built = dream_parts.make_parts(config(noise=0.5), city.make("distraction"))
    params = {"problem": built.nets.problem.init(KEY)}
    ids = jnp.full(200, 7)
    noise = built.told_fn(params, ids, KEY) - built.nets.problem.apply(params["problem"], ids)
    # Of 12,800 numbers, 64 for each of 200 draws: means and deviations within five of their own deviations.
    assert float(jnp.std(noise)) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(2 * noise.size))
    assert float(jnp.max(jnp.abs(jnp.mean(noise, axis=0)))) < 5 * 0.5 / np.sqrt(200)
    assert built.told_fn(params, ids[0], KEY).shape == noise[0].shape


@pytest.mark.parametrize("swept", ["mix", "surprise", "noise", "inner_rate"])
def test_numbers_can_be_swept_in_one_program(swept):
    numbers = config(**VARIANTS["shared"], gradient="augment")
    system = dream.make(numbers, environment("map"))
    state = jax.eval_shape(system.init, KEY)

    def step(number, state):
        return dream.make(dataclasses.replace(numbers, **{swept: number}), environment("map")).step(state, None)

    after, _ = jax.eval_shape(step, 0.5, state)
    assert after == state


SLOW = [{"method": "rl2"}, {"observation": "picture"}]


@pytest.mark.parametrize("changes", [{}, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_acting_from_the_record_is_playing(changes):
    agents, tasks, play = recorded(**changes)
    trials, built = play(agents, 0.0), parts(**changes)
    params = {name: agent.params for name, agent in agents.items()}
    act = jax.jit(partial(dream_trials.act, built, params, epsilon=0.0))
    # The environment has nobody who tells the number of a task.
    for i in np.flatnonzero(~np.asarray(tasks.by_id)):
        trial = jax.tree.map(lambda x, i=i: x[i], trials)
        lengths = [int(jnp.sum(episode.mask)) for episode in (trial.exploration, trial.execution)]
        record = city_trials.Record(
            obs=jnp.stack([trial.exploration.obs, trial.execution.obs]),
            action=jnp.stack([trial.exploration.action, trial.execution.action]),
            steps=jnp.array([0, 0]),
            goal=trial.goal,
            executing=jnp.array(0),
        )
        for part, t in ((0, 0), (0, lengths[0] - 1), (1, 0), (1, lengths[1] - 1)):
            steps = jnp.array([t, 0]) if part == 0 else jnp.array([lengths[0], t])
            obs = city_trials._written(record._replace(steps=steps, executing=jnp.array(part)))
            assert act(obs, KEY) == record.action[part, t]


def test_the_baseline_joins_its_episodes():
    rng = np.random.default_rng(0)
    town = city.make("distraction")

    def episode(length):
        mask = (np.arange(HORIZON) < length).astype(np.float32)
        obs = rng.integers(0, 4, (HORIZON + 1, 3))
        return Episode(*map(jnp.asarray, (obs, rng.integers(0, 9, HORIZON), mask * 0.5, 1.0 - mask, mask)))

    for lengths in ((3, 5), (HORIZON, HORIZON), (1, 1)):
        trial = Trial(jnp.array(1), jnp.array([8, 0]), *map(episode, lengths))
        found = dream_joined.joined(trial)
        expected = []
        for part, (e, length) in enumerate(zip((trial.exploration, trial.execution), lengths)):
            for t in range(length):
                previous = 0 if t == 0 else int(e.action[t - 1]) + 1
                told = [9, 1] if part else [0, 0]
                expected.append([*e.obs[t].tolist(), previous, *told])
        total = sum(lengths)
        np.testing.assert_array_equal(found.obs[:total], expected)
        assert found.mask.tolist() == [1.0] * total + [0.0] * (2 * HORIZON - total)
        assert found.reward[:total].tolist() == [0.0] * lengths[0] + [0.5] * lengths[1]
        # Exploration goes on into execution; only its end is one.
        assert np.all(found.discount[: lengths[0]] == 1.0)
        np.testing.assert_array_equal(found.discount[lengths[0] : total], trial.execution.discount[: lengths[1]])
        assert np.all(np.asarray(found.obs)[:, 3:] < np.array(dream_joined.obs_sizes(town)[3:]))


def test_released_tasks_are_those_of_the_trial():
    town = city.make("distraction", hidden_goal=True)
    draw = dream._drawer(dream_parts.make_parts(config(task_order="released", hidden_goal=True), town))
    ids, goals = city.released_tasks(town, range(16), "train")
    for number in (0, 5, 11):
        task = draw(jnp.array(number), KEY)
        assert task.task_id == ids[number] and task.by_id == (number % 2 == 1)
        np.testing.assert_array_equal(task.goal, goals[number])
        np.testing.assert_array_equal(task.hidden_goal, city.hidden_goals(town, range(16))[number])


def test_random_tasks_are_those_of_training():
    draw = jax.jit(jax.vmap(dream._drawer(parts())))
    tasks = draw(jnp.arange(500), jax.random.split(KEY, 500))
    assert set(np.asarray(tasks.task_id).tolist()) == set(parts().town.train_ids.tolist())


@pytest.mark.parametrize(
    ("changes", "env", "field"),
    [
        ({"parallel_trials": 3}, "city/map", "trials_per_iteration=8 must be a multiple of parallel_trials=3: 9"),
        ({"trials": 20}, "city/map", "trials=20 must be a multiple of trials_per_iteration=8: 16"),
        ({"parallel_trials": 8, "capacity": 4}, "city/map", "parallel_trials=8 must not exceed capacity=4"),
        ({"method": "rl2"}, "city/map", "needs recurrent=True"),
        ({"method": "rl2", "recurrent": True, "observation": "picture"}, "city/map", "observation='picture'"),
        ({"method": "dreem"}, "city/map", "method='dreem'"),
        ({"split": "every12"}, "city/distraction", "split='every12'"),
        ({"gamma": 1.5}, "city/map", "gamma=1.5"),
        ({"noise": -0.1}, "city/map", "noise=-0.1"),
        ({"noise": np.inf}, "city/map", "noise=inf must be 0 or more, and finite"),
        ({"learning_rate": np.inf}, "city/map", "learning_rate=inf must be positive and finite"),
        ({"model_learning_rate": np.nan}, "city/map", "model_learning_rate=nan"),
        ({"plan_depth": 1}, "city/map", "plan_depth=1 plans without a model"),
        ({"shared": True, "plan_depth": 1, "dueling_mean": "batch"}, "city/map", "dueling_mean='state'"),
        ({"shared": True, "plan_depth": 9}, "city/map", "plan_depth=9 makes .* use 6 or less"),
        ({}, "pendulum", "env='pendulum' has no trials"),
        ({}, "city/maps", "env='city/maps' has no trials"),
    ],
)
def test_bad_input_is_refused(changes, env, field):
    whole = environment()
    with pytest.raises(InputError, match=field):
        dream.make(config(**changes), whole._replace(spec=whole.spec._replace(name=env)))
