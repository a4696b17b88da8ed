import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sparse_tube_vit.config import default_config, stream
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.training.freezing import NewButFrozen, check_gate, check_new
from sparse_tube_vit.training.optimizer import make_optimizer
from sparse_tube_vit.training.state import TrainState
from sparse_tube_vit.training.step import make_train_step

CLIP = (2, 8, 8)


def wave(shape):
    return jnp.sin(1 + jnp.arange(math.prod(shape))).reshape(shape)


def make_run(frozen, depth, head_steps=0, heads_alone=False, **options):
    """(train step, init, batches) of a model that is as small as can be."""
    config = default_config()
    config.total_steps = 10
    config.clip.update(frames=CLIP[0], size=CLIP[1])
    config.model.update(depth=depth, width=8, mlp_dim=16, heads=2, dropout=0.1)
    config.model.update(options, tubes=({"kernel": (2, 4, 4), "stride": (2, 2, 2)},))
    config.optimizer.update(learning_rate=0.01, warmup_steps=1, ema_decay=0.5)
    layers = depth + options.get("new_layers", 0)
    trained = None if frozen is None else layers - frozen
    config.optimizer.update(trained_layers=trained, head_steps=head_steps)
    config.streams.video = stream(kind="video", dataset="d", head="h", batch_size=2)
    model = make_model(config, {"h": 3})
    optimizer = make_optimizer(config)

    @jax.jit
    def init():
        params = init_params(model, jax.random.key(0), CLIP)
        # Nothing at zero or alike, for nothing to stand still by chance.
        params = jax.tree.map(lambda x: x + 0.1 * wave(x.shape), params)
        return TrainState.create(params, optimizer, config)

    videos = np.random.default_rng(0).integers(0, 256, (2, *CLIP, 3), np.uint8)
    batch = {"video": videos, "label": np.arange(2), "weight": np.ones(2, np.float32)}
    return (
        jax.jit(make_train_step(model, optimizer, config, heads_alone)),
        init,
        {"video": batch},
    )


@pytest.mark.parametrize("new_layers", [0, 1])
def test_what_is_fresh_trains_alone_first(new_layers):
    """As with the pretrained layers frozen; then these move, from what they were."""
    alone, init_alone, batches = make_run(2, 2, new_layers=new_layers)
    options = {"head_steps": 3, "new_layers": new_layers}
    first, init, _ = make_run(None, 2, heads_alone=True, **options)
    state = before = init()
    expected = init_alone()
    for _ in range(3):
        state, metrics = first(state, batches)
        expected, as_expected = alone(expected, batches)
        assert metrics["loss"] == pytest.approx(as_expected["loss"])
    for tree, rounding in {"params": 0, "ema": 1e-6}.items():
        start, end, ended = (
            flatten_dict(getattr(s, tree), sep="/") for s in (before, state, expected)
        )
        for name, x in end.items():
            fresh = ("head_h", "pooling", "encoder/new_block")
            fresh += ("encoder/norm",) * new_layers
            if new_layers and name.endswith("key/bias"):
                continue  # its gradient is rounding alone
            if name.startswith(fresh):
                np.testing.assert_allclose(x, ended[name], atol=1e-6)
                assert not np.array_equal(x, start[name])
            else:
                np.testing.assert_allclose(x, start[name], rounding, rounding)
    step, _, _ = make_run(None, 2, **options)
    for _ in range(2):  # the first of them at a rate of 0, as in every warm-up
        state, _ = step(state, batches)
    end = flatten_dict(state.params, sep="/")
    assert not any(np.array_equal(x, end[name]) for name, x in flat(before).items())


def flat(state):
    return flatten_dict(state.params, sep="/")


@pytest.mark.parametrize(
    "frozen, options, still",
    [
        (None, {}, set()),
        (0, {"positions": "learned", "pooling": "class_token"}, {"class_token"}),
        (1, {"gate_after": 1}, {"encoder/block_0"}),
        (
            2,
            {"gate_after": 1},
            {"encoder/block_0", "encoder/block_1", "encoder/gate", "encoder/norm"},
        ),
        (2, {"new_layers": 1}, {"encoder/block_0", "encoder/block_1"}),
        (2, {}, {"encoder/block_0", "encoder/block_1", "encoder/norm"}),
    ],
    ids=["everything", "encoder", "last and gate", "below", "new layer", "head"],
)
def test_what_is_frozen_stays_and_has_no_state(frozen, options, still):
    """Steps move all that is trained, and not one bit of the rest."""
    step, init, batches = make_run(frozen, 2, **options)
    state = before = init()
    for _ in range(4):
        state, _ = step(state, batches)
    start, end = (flatten_dict(s.params, sep="/") for s in (before, state))
    same = {name for name in start if np.array_equal(start[name], end[name])}
    if frozen is not None:
        still = still | {"stem", "positions"}
    expected = {
        name
        for name in start
        if f"{name}/".startswith(tuple(f"{part}/" for part in still))
    }
    assert same == expected
    trained = start.keys() - expected
    adam = state.optimizer[1]
    for tree in (adam.mu, adam.nu, state.ema):
        assert flatten_dict(tree, sep="/").keys() == trained
    average = flatten_dict(state.eval_params, sep="/")
    assert average.keys() == start.keys()
    for name in start:
        assert np.array_equal(average[name], end[name]) == (name in same)


def test_a_gain_may_be_frozen_at_its_start_and_random_parameters_may_not():
    config = default_config()
    config.optimizer.trained_layers = 11
    check_new(["positions/gain", "pooling/probe"], config)
    with pytest.raises(NewButFrozen, match="no positions/tube_0, which"):
        check_new(["positions/gain", "positions/tube_0"], config)


def test_a_gate_is_not_frozen_at_its_start():
    config = default_config()
    config.model.gate_after = 8
    params = {"encoder": {"gate": np.float32(0)}}
    for trained, refused in ((None, False), (4, False), (3, True), (0, True)):
        config.optimizer.trained_layers = trained
        if refused:
            with pytest.raises(NewButFrozen, match="gate_after to (9|12), or train"):
                check_gate(params, config)
        else:
            check_gate(params, config)
        check_gate({"encoder": {"gate": np.float32(0.1)}}, config)
    check_gate({}, config)


def test_no_gradient_is_computed_below_the_trained_layers():
    """The last 8 of 32 layers take 32 layers forward and 8 back, of 32 and 32."""

    def flops(frozen):
        step, init, batches = make_run(frozen, 32)
        return step.lower(jax.eval_shape(init), batches).cost_analysis()["flops"]

    assert flops(24) < 0.6 * flops(None)
