from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import abstract_networks, cell_encoder
from jaxhybrid.envs import maze
from jaxhybrid.errors import InputError

KEY = jax.random.key(0)


def case():
    """An encoder with large weights, so that no tanh is linear, and cells of three mazes and a blank."""
    encoder = abstract_networks.map_networks((48, 48), 4).encoder
    shapes = jax.eval_shape(encoder.init, KEY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.5, size=x.shape), x.dtype), shapes)
    env = maze.make(observation="cells", pool_size=30)
    reset = jax.jit(env.reset)
    cells = []
    for i in range(3):
        state, obs = reset(jax.random.key(i))
        # Somewhere else than the start, next to the walls of the ring as well.
        places = np.argwhere(~np.asarray(state.walls))
        place = places[-1] if i == 0 else places[len(places) // 2]
        cells.append(obs.at[1, 1].set(maze.FREE).at[place[0], place[1]].set(maze.AGENT))
    return encoder, params, jnp.stack([*cells, jnp.zeros((8, 8))])


@pytest.mark.float64
def test_the_table_is_the_picture_in_values_and_gradients():
    encoder, params, cells = case()
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 3)))

    def outcome(p, network):
        z = jax.vmap(partial(network.apply, p))(cells)
        return jnp.sum(weight * z), z

    sprites = maze.sprites().astype(np.float64)
    pictures = jax.vmap(partial(encoder.apply, params))(jax.vmap(maze.render)(cells).astype(jnp.float64))
    both = []
    for build in (cell_encoder.drawn, cell_encoder.tabulated):
        gradient, z = jax.jit(jax.grad(partial(outcome, network=build(encoder, sprites)), has_aux=True))(params)
        np.testing.assert_allclose(z, pictures, rtol=1e-6, atol=1e-6)  # `render` draws in single precision
        both.append(gradient)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9), *both)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(both[0]))


def test_sprites_of_another_size_are_refused():
    encoder = abstract_networks.map_networks((48, 48), 4).encoder
    with pytest.raises(InputError, match=r"shape \(5, 4, 4\)"):
        cell_encoder.tabulated(encoder, np.zeros((5, 4, 4)))
