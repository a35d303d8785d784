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
def test_patches_are_the_picture_in_values_and_gradients():
    encoder, params, cells = case()
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 3)))
    sprites = maze.sprites().astype(np.float64)

    def drawn(p):
        return jax.vmap(partial(cell_encoder.drawn(encoder, sprites).apply, p))(cells)

    def by_patch(p):
        return cell_encoder.patch_encoder(sprites)(p, cell_encoder.find_patches(cells, len(sprites)))

    def outcome(p, encode):
        z = encode(p)
        return jnp.sum(weight * z), z

    pictures = jax.vmap(partial(encoder.apply, params))(jax.vmap(maze.render)(cells).astype(jnp.float64))
    both = []
    for encode in (drawn, by_patch):
        gradient, z = jax.jit(jax.grad(partial(outcome, encode=encode), has_aux=True))(params)
        np.testing.assert_allclose(z, pictures, rtol=1e-6, atol=1e-6)  # `render` draws in single precision
        both.append(gradient)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9), *both)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(both[0]))
    # The work is that of the patches in use, of which there are more than fit into one chunk, and fewer than positions.
    used = cell_encoder.find_patches(cells, len(sprites)).used
    assert cell_encoder._CHUNK < used < cells.size


def test_patches_of_two_pictures_by_hand():
    cells = np.full((2, 8, 8), maze.FREE)
    cells[:, [0, -1]] = cells[:, :, [0, -1]] = maze.WALL
    cells[1, 3, 3] = maze.AGENT
    patches = cell_encoder.find_patches(jnp.asarray(cells), 5)
    # An empty room: by row and by column a patch lies at the first wall, next to it, inside, or at the other end. The
    # nine patches around the agent are none of these.
    assert patches.used == 5 * 5 + 9
    index = np.asarray(patches.places)
    np.testing.assert_array_equal(
        index[0] != index[1], np.isin(np.arange(8), [2, 3, 4])[:, None] & np.isin(np.arange(8), [2, 3, 4])
    )


def test_sprites_and_kinds_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"shape \(5, 4, 4\)"):
        cell_encoder.patch_encoder(np.zeros((5, 4, 4)))
    with pytest.raises(InputError, match="num_kinds=10 must be at most 9"):
        cell_encoder.find_patches(jnp.zeros((1, 8, 8), jnp.int32), 10)
