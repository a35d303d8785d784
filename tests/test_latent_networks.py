import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import city, city_planes
from jaxhybrid.latent_networks import PlaneEncoder, latent_model

KEY = jax.random.key(0)


def test_a_model_listens_to_action_goal_and_code():
    model = latent_model(5, 3, (9, 9), 4, gamma=0.9)
    x, action, goal, code = jnp.ones(5), jnp.array(1), jnp.array([8, 0]), jnp.ones(3)
    params = jax.jit(lambda key: [net.init(key) for net in model])(KEY)
    after = jax.jit(model.dynamics.apply)
    base = after(params[0], x, action, code)
    assert base.shape == (5,)
    assert all((base != after(params[0], x, *other)).any() for other in ((action + 1, code), (action, 2 * code)))
    for net, weights in zip(model[1:], params[1:]):
        apply = jax.jit(net.apply)
        others = [(action + 1, goal, code), (action, goal[::-1], code), (action, goal, 2 * code)]
        assert len({float(apply(weights, x, *inputs)) for inputs in [(action, goal, code), *others]}) == 4
    # Whatever the state, an episode goes on with a chance.
    far = jax.vmap(lambda scale: model.discount.apply(params[2], scale * x, action, goal, code))(
        jnp.linspace(-9, 9, 20)
    )
    assert (far > 0).all() and (far < 0.9).all()


def test_planes_show_the_observation_and_nothing_more():
    town = city.make("combination")
    obs, goal = jnp.array([7, 3, 0, 12]), jnp.array([8, 0])
    picture = np.asarray(city_planes.planes(town, obs, goal))
    assert picture.shape == (9, 9, city_planes.NUM_PLANES)
    assert np.argwhere(picture[..., 0]).tolist() == [[7, 3]] and np.argwhere(picture[..., 3]).tolist() == [[8, 0]]
    stops = {*city.HELPFUL_STOPS, *city.HELPFUL_ENDS, *city.USELESS_STOPS, *city.USELESS_ENDS}
    assert set(map(tuple, np.argwhere(picture[..., 1]).tolist())) == stops
    assert picture[7, 3, 2] == np.float32(0.5) and np.count_nonzero(picture[..., 2]) == 1
    plain = np.asarray(city_planes.planes(city.make("vanilla"), obs[:3]))
    assert plain[..., 1].sum() == 8 and not plain[..., 2:].any()


def test_an_encoder_of_planes_tells_all_cells_apart():
    town, encoder = city.make(), PlaneEncoder(16)
    cells = jnp.stack(jnp.meshgrid(jnp.arange(9), jnp.arange(9), jnp.arange(1)), axis=-1).reshape(-1, 3)
    pictures = jax.jit(jax.vmap(lambda obs: city_planes.planes(town, obs)))(cells)
    params = jax.jit(encoder.init)(KEY, pictures[0])
    codes = jax.jit(jax.vmap(encoder.apply, in_axes=(None, 0)))(params, pictures)
    gaps = jnp.linalg.norm(codes[:, None] - codes[None], axis=-1) + jnp.eye(81)
    assert codes.shape == (81, 16) and gaps.min() > 1e-3
