"""The optimizer against one that is written out in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from sparse_tube_vit.config import InvalidConfig, default_config, stream, validate
from sparse_tube_vit.distributed.sharding import make_mesh, state_shardings
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.training.freezing import frozen_parts, partition
from sparse_tube_vit.training.optimizer import describe_rates, make_optimizer

CLIP = (2, 8, 8)

# With a decay of 0.5 in three blocks of which the last is fresh: by the start of the
# parameters' names.
SCALES = {
    "stem/tube_0/": 0.3,  # of two frames
    "stem/tube_1/": 0.125,
    "positions/gain": 0.3,
    "positions/tube_": 0.125,
    "class_token": 0.125,
    "encoder/block_0/": 0.25,
    "encoder/block_1/": 0.5,
    "encoder/new_block_0/": 1,
    "encoder/gate": 1,
    "encoder/norm/": 1,
    "pooling/": 1,
    "head_h/": 1,
}

NEW = ("stem/tube_0/", "positions/gain")


def make_config(**optimizer):
    config = default_config()
    config.total_steps = 10
    config.clip.update(frames=CLIP[0], size=CLIP[1])
    config.model.update(depth=2, width=8, mlp_dim=16, heads=2, new_layers=1)
    config.model.update(gate_after=1, positions="learned", position_gain=0.0)
    config.model.tubes = (
        {"kernel": (2, 4, 4), "stride": (2, 4, 4)},
        {"kernel": (1, 4, 4), "stride": (2, 4, 4)},
    )
    config.optimizer.update(
        learning_rate=0.01, warmup_steps=2, weight_decay=0.1, clip_norm=1.0
    )
    config.optimizer.update(optimizer)
    config.streams.video = stream(kind="video", dataset="d", head="h", batch_size=8)
    return config


def random_params(config):
    model = make_model(config, {"h": 8})
    params = init_params(model, jax.random.key(0), CLIP)
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: random.normal(size=x.shape).astype(np.float32), params
    )


def gradients_of(params, steps=3):
    random = np.random.default_rng(1)
    return [
        jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), params)
        for _ in range(steps)
    ]


def take_steps(config, params, gradients):
    """The parameters after the steps, and the optimizer's last state."""
    optimizer = make_optimizer(config)

    @functools.partial(jax.jit, static_argnames="heads_alone")
    def step(params, state, gradient, heads_alone):
        options = {"heads_alone": True} if heads_alone else {}
        updates, state = optimizer.update(gradient, state, params, **options)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for i, gradient in enumerate(gradients):
        heads_alone = i < config.optimizer.head_steps
        params, state = step(params, state, gradient, heads_alone)
    return params, state


def rate_of(t, steps):
    """Two steps of warm-up, then half a cosine to the last of `steps`."""
    return 0.01 * (t / 2 if t < 2 else (1 + np.cos(np.pi * (t - 2) / (steps - 2))) / 2)


def expected_of(config, params, gradients, scales, waiting=()):
    """AdamW with a norm that is clipped and a rate for each parameter, in numpy."""
    o = config.optimizer
    params = {k: np.float64(x) for k, x in flatten_dict(params, sep="/").items()}
    mu, nu = ({k: 0.0 for k in params} for _ in range(2))
    for step, gradient in enumerate(gradients):
        gradient = flatten_dict(gradient, sep="/")
        norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in gradient.values()))
        for k, g in gradient.items():
            first = o.head_steps if k.startswith(waiting) else 0
            if (t := step - first) < 0:
                continue
            rate = rate_of(t, config.total_steps - first)
            g = g / max(norm / o.clip_norm, 1)
            mu[k] = o.beta1 * mu[k] + (1 - o.beta1) * g
            nu[k] = o.beta2 * nu[k] + (1 - o.beta2) * g**2
            mean, square = (
                m / (1 - beta ** (t + 1))
                for m, beta in ((mu[k], o.beta1), (nu[k], o.beta2))
            )
            update = mean / (np.sqrt(square) + 1e-8)
            if k.endswith("/kernel"):
                update = update + o.weight_decay * params[k]
            (scale,) = (s for start, s in scales.items() if k.startswith(start))
            params[k] = params[k] - rate * scale * update
    return params


def assert_close(params, expected):
    flat = flatten_dict(params, sep="/")
    assert flat.keys() == expected.keys()
    for name, x in flat.items():
        np.testing.assert_allclose(x, expected[name], atol=2e-6, err_msg=name)


TRUNK = [name for name in SCALES if name not in (*NEW, "encoder/gate", "pooling/")]
TRUNK = [n for n in TRUNK if not n.startswith(("head", "encoder/new"))]


@pytest.mark.parametrize(
    "decay, trunk, tubes, scales",
    [
        (0.5, 1.0, 0.3, SCALES),
        (0.5, 0.1, 0.3, SCALES | {name: SCALES[name] * 0.1 for name in TRUNK}),
        (0.5, 1.0, None, SCALES | dict.fromkeys(NEW, 0.125)),
        (1.0, 1.0, 0.3, dict.fromkeys(SCALES, 1) | dict.fromkeys(NEW, 0.3)),
        (1.0, 1.0, None, dict.fromkeys(SCALES, 1)),
    ],
    ids=["both", "trunk", "decay", "tubes", "neither"],
)
def test_every_layer_trains_at_its_rate(decay, trunk, tubes, scales):
    config = make_config(layer_decay=decay, trunk_rate=trunk, video_tubes_rate=tubes)
    params = random_params(config)
    gradients = gradients_of(params)
    ours, _ = take_steps(config, params, gradients)
    assert_close(ours, expected_of(config, params, gradients, scales))


def test_what_waits_for_pooling_and_heads_has_a_clock_of_its_own():
    """Its moments and its warm-up begin after three steps, of gradients as clipped."""
    config = make_config(head_steps=3, beta1=0.8, beta2=0.95)
    params = random_params(config)
    gradients = gradients_of(params, steps=7)
    ours, _ = take_steps(config, params, gradients)
    waiting = ("stem/", "positions/", "encoder/block_", "encoder/gate")
    scales = dict.fromkeys(SCALES, 1)
    assert_close(ours, expected_of(config, params, gradients, scales, waiting))


def test_frozen_layers_and_shards_have_the_same_rates():
    config = make_config(layer_decay=0.5, video_tubes_rate=0.3, trained_layers=2)
    config.mesh.update(data=1, fsdp=8)
    params, _ = partition(random_params(config), frozen_parts(config))
    assert [*params["encoder"]] == ["block_1", "gate", "new_block_0", "norm"]
    gradients = gradients_of(params)
    expected = expected_of(config, params, gradients, SCALES)
    mesh = make_mesh(config)
    place = lambda tree: jax.device_put(tree, state_shardings(tree, mesh))  # noqa: E731
    ours, state = take_steps(config, place(params), [place(g) for g in gradients])
    assert_close(ours, expected)
    kernel = ours["encoder"]["block_1"]["mlp"]["up"]["kernel"]
    assert not kernel.sharding.is_fully_replicated


def test_the_state_is_as_before_where_rates_do_not_differ():
    config = make_config()
    _, state = take_steps(config, params := random_params(config), [])
    before = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.999),
        optax.add_decayed_weights(0.1, mask=lambda p: jax.tree.map(jnp.any, p)),
        optax.scale_by_learning_rate(lambda step: 0.01),
    ).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(before)


def test_the_rates_in_words():
    config = make_config(layer_decay=0.5, video_tubes_rate=0.3)
    names = flatten_dict(random_params(config), sep="/")
    assert describe_rates(config, names).splitlines() == [
        "Peak learning rates by layer:",
        "  0.01     encoder/gate, encoder/new_block_0, encoder/norm, head_h, pooling",
        "  0.005    encoder/block_1",
        "  0.003    positions/gain, stem/tube_0",
        "  0.0025   encoder/block_0",
        "  0.00125  positions/tube_0, positions/tube_1, stem/tube_1",
    ]


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_a_decay_that_cannot_be(decay):
    with pytest.raises(InvalidConfig, match="layer_decay is .* above 0 and up to 1"):
        validate(make_config(layer_decay=decay))
    with pytest.raises(InvalidConfig, match="video_tubes_rate is 2.0: .*None, or"):
        validate(make_config(video_tubes_rate=2.0))


@pytest.mark.parametrize("weight", [None, 0.0, 1.0], ids=["none", "no weight", "both"])
def test_kernels_that_nothing_trains_do_not_decay(weight):
    config = make_config()
    if weight is None:
        del config.streams.video
    else:
        config.streams.video.loss_weight = weight
    config.streams.image = stream(kind="image", dataset="d", head="i", batch_size=8)
    params = random_params(config)
    params["head_i"] = params["head_h"]
    still = [jax.tree.map(np.zeros_like, params)] * 3
    after, _ = take_steps(config, params, still)
    after, before = (flatten_dict(tree, sep="/") for tree in (after, params))
    for layer in ("stem/tube_0", "stem/tube_1", "head_h", "head_i", "encoder/block_0"):
        of_videos = layer in ("stem/tube_0", "head_h")
        decays = weight == 1.0 or not of_videos
        kernels = [k for k in after if k.startswith(layer) and k.endswith("/kernel")]
        assert kernels
        for name in kernels:
            moved = after[name] != before[name]
            assert moved.all() if decays else not moved.any(), name
