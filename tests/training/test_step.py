import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from sparse_tube_vit.config import EncoderOptions, default_config, stream
from sparse_tube_vit.distributed.sharding import make_mesh
from sparse_tube_vit.models.tubes import Tube
from sparse_tube_vit.models.tubevit import TubeViT, init_params
from sparse_tube_vit.training import step as steps
from sparse_tube_vit.training.optimizer import learning_rate, make_optimizer
from sparse_tube_vit.training.program import Program

CLIP = (4, 16, 16)


def make_config(**streams):
    config = default_config()
    config.total_steps = 10
    config.optimizer.update(learning_rate=0.01, warmup_steps=2, ema_decay=0.9)
    for name, options in streams.items():
        kind = "video" if name.startswith("video") else "image"
        options = {"head": kind, "batch_size": 4} | options
        config.streams[name] = stream(kind=kind, dataset="d", **options)
    return config


@pytest.fixture(scope="module")
def model():
    return TubeViT(
        tubes=(Tube((4, 8, 8), (4, 8, 8)), Tube((1, 8, 8), (4, 8, 8))),
        classes={"video": 5, "image": 3},
        options=EncoderOptions(depth=1, width=12, mlp_dim=16, heads=2),
    )


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)

    def batch(frames, classes):
        return {
            "video": rng.integers(0, 256, (4, frames, 16, 16, 3), np.uint8),
            "label": rng.integers(0, classes, 4).astype(np.int32),
            "weight": np.ones(4, np.float32),
        }

    return {"video": batch(4, 5), "image": batch(1, 3)}


def run(model, config, batches, n=1):
    optimizer = make_optimizer(config)

    @jax.jit
    def create(key):
        params = init_params(model, key, CLIP)
        return steps.TrainState.create(params, optimizer, config)

    state = create(jax.random.key(1))
    train_step = jax.jit(steps.make_train_step(model, optimizer, config))
    for _ in range(n):
        state, metrics = train_step(state, batches)
    return state, metrics


@pytest.mark.parametrize("ema_decay", [0.9, 0.12])  # above the ramp's 2/11, and below
def test_one_step_is_adam_on_the_weighted_sum_of_both_losses(model, batches, ema_decay):
    """Two steps written out with optax's adamw, plain cross entropy, both heads."""
    config = make_config(video={"loss_weight": 0.5}, image={"label_smoothing": 0.1})
    config.optimizer.update(clip_norm=0.0, weight_decay=0.1, beta2=0.99)
    config.optimizer.ema_decay = ema_decay
    state, metrics = run(model, config, batches, n=2)

    params = init_params(model, jax.random.key(1), CLIP)
    mask = jax.tree_util.tree_map_with_path(lambda p, _: p[-1].key == "kernel", params)
    adamw = optax.adamw(
        learning_rate(config), b1=0.9, b2=0.99, weight_decay=0.1, mask=mask
    )
    adam = jax.jit(adamw.init)(params)
    average = params = jax.device_get(params)

    def loss(params):
        total = 0.0
        for name, weight, smooth in (("video", 0.5, 0.0), ("image", 1.0, 0.1)):
            b = batches[name]
            logits = model.apply({"params": params}, b["video"], name)
            classes = logits.shape[1]
            target = jax.nn.one_hot(b["label"], classes) * (1 - smooth)
            target += smooth / classes
            total -= weight * jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits), 1))
        return total

    @jax.jit
    def step(params, adam):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, adam = adamw.update(gradient, adam, params)
        norm = optax.global_norm(gradient)
        return value, norm, optax.apply_updates(params, updates), adam

    for i in range(2):
        value, norm, params, adam = step(params, adam)
        decay = min(ema_decay, (1 + i) / (10 + i))
        average = jax.tree.map(
            lambda a, p, d=decay: d * a + (1 - d) * p, average, params
        )

    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], 0.01 / 2)  # of the second
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), state.params, params
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), state.ema, average
    )
    jax.tree.map(np.testing.assert_array_equal, state.eval_params, state.ema)


def test_decay_spares_tubes_that_no_stream_trains(model, batches):
    """Images go through tubes of one frame; nothing would hold the others."""
    before = init_params(model, jax.random.key(1), CLIP)["stem"]
    frames = {f"tube_{i}": tube.kernel[0] for i, tube in enumerate(model.tubes)}
    assert {1} < {*frames.values()}
    for name in ("image", "video"):
        config = make_config(**{name: {}})
        config.optimizer.update(weight_decay=0.5, warmup_steps=0)
        state, _ = run(model, config, {name: batches[name]}, n=2)
        for tube, t in frames.items():
            same = np.array_equal(
                state.params["stem"][tube]["kernel"], before[tube]["kernel"]
            )
            assert same == (name == "image" and t > 1)


def test_both_streams_teach_the_trunk_and_only_their_own_head(model, batches):
    before = init_params(model, jax.random.key(1), CLIP)
    for name, other in (("video", "image"), ("image", "video")):
        config = make_config(**{name: {}})
        config.optimizer.weight_decay = 0.0
        state, _ = run(model, config, {name: batches[name]}, n=3)
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, before)
        assert moved[f"head_{name}"]["kernel"] and not moved[f"head_{other}"]["kernel"]
        assert moved["encoder"]["block_0"]["mlp"]["up"]["kernel"]
        assert moved["stem"]["tube_1"]["kernel"]
        assert moved["stem"]["tube_0"]["kernel"] == (name == "video")


# Heads start at zero: only in the third step does the loss tell pixels apart, and
# everything has moved.


def test_examples_of_weight_zero_count_for_nothing(model, batches):
    config = make_config(video={})
    config.optimizer.warmup_steps = 0
    video = batches["video"]
    weight = np.array([1, 0, 1, 0], np.float32)
    other = video["video"].copy()
    other[1], other[3] = 0, 255
    weighted = video | {"weight": weight}
    one, seen = run(model, config, {"video": weighted}, n=3)
    two, _ = run(model, config, {"video": weighted | {"video": other}}, n=3)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    _, unweighted = run(model, config, {"video": video | {"video": other}}, n=3)
    assert abs(unweighted["loss"] - seen["loss"]) > 0.01

    half = {k: np.concatenate([v[[0, 2]]] * 2) for k, v in video.items()}
    _, expected = run(model, config, {"video": half}, n=3)
    np.testing.assert_allclose(seen["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(seen["video/accuracy"], expected["video/accuracy"])


def test_no_example_at_all_is_no_loss(model, batches):
    nothing = batches["video"] | {"weight": np.zeros(4, np.float32)}
    _, metrics = run(model, make_config(video={}), {"video": nothing})
    assert metrics["loss"] == 0 and np.isfinite(metrics["gradient_norm"])


def mix(videos, targets, weights):
    examples = {"video": videos, "label": targets}
    examples |= {"target": targets, "weight": weights}
    return steps.mix_pairs(jax.random.key(0), 0.8, examples)


def test_mixup_mixes_pictures_and_labels_alike():
    levels = jnp.arange(4, dtype=jnp.uint8) * 50
    videos = jnp.broadcast_to(levels.reshape(4, 1, 1, 1, 1), (4, 1, 2, 2, 3))
    mixed = mix(videos, jnp.eye(4), jnp.array([1.0, 1.0, 0.0, 1.0]))
    labels, seen = mixed["target"], steps.model_clips(mixed)
    share = float(labels[1, 1])
    assert 0 < share < 1
    for i, partner in ((0, 3), (1, 0), (2, 1), (3, 2)):
        level = share * 50 * i + (1 - share) * 50 * partner
        np.testing.assert_allclose(seen[i], level / 127.5 - 1, atol=1e-6)
        np.testing.assert_allclose(labels[i, partner], 1 - share, rtol=1e-6)
    # Both of a pair must be there.
    assert mixed["weight"].tolist() == [1, 1, 0, 0]


def test_accuracy_of_mixed_pairs_is_that_of_the_larger_part():
    labels = np.eye(4, dtype=np.float32)
    examples = {"video": np.zeros((4, 1, 2, 2, 3), np.uint8), "weight": np.ones(4)}
    examples |= {"label": labels, "target": labels}
    larger = set()
    for seed in range(8):
        mixed = steps.mix_pairs(jax.random.key(seed), 0.8, examples)
        np.testing.assert_array_equal(
            np.argmax(mixed["label"], axis=1), np.argmax(mixed["target"], axis=1)
        )
        larger.add(bool(mixed["lambda"][0] > 0.5))
    assert larger == {False, True}


def test_mixup_mixes_several_labels_too():
    targets = jnp.array([[1.0, 1, 0], [0, 0, 0], [0, 1, 1]])
    mixed = mix(jnp.zeros((3, 1, 1, 1, 3), jnp.uint8), targets, jnp.ones(3))["target"]
    share = float(mixed[0, 0])
    assert 0 < share < 1
    expected = share * targets + (1 - share) * targets[jnp.array([2, 0, 1])]
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


def test_a_stream_of_several_labels_has_the_sigmoid_loss(model, batches):
    config = make_config(video={"loss": "sigmoid"}, image={})
    labels = np.random.default_rng(1).integers(0, 2, (4, 5)).astype(np.int32)
    video = batches["video"] | {"label": labels}
    config.optimizer.warmup_steps = 0
    state, _ = run(model, config, batches | {"video": video}, n=2)
    _, metrics = run(model, config, batches | {"video": video}, n=3)
    logits = np.asarray(model.apply({"params": state.params}, video["video"], "video"))
    assert np.ptp(logits) > 0.01
    there = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -np.mean(np.log(np.where(labels, there, 1 - there)))
    np.testing.assert_allclose(metrics["video/loss"], expected, rtol=1e-5)
    share = labels[np.arange(4), logits.argmax(1)].mean()
    np.testing.assert_allclose(metrics["video/precision_at_1"], share)
    assert "image/accuracy" in metrics and "video/accuracy" not in metrics


@pytest.mark.slow
def test_mixup_and_dropout_follow_from_the_step(model, batches):
    config = make_config(video={"mixup": 0.5}, image={})
    noisy = model.with_options(dropout=0.3)
    one, _ = run(noisy, config, batches, n=3)
    two, _ = run(noisy, config, batches, n=3)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    plain, _ = run(model, config, batches, n=3)
    assert not np.array_equal(
        one.params["head_video"]["kernel"], plain.params["head_video"]["kernel"]
    )


def test_each_step_of_each_seed_has_keys_of_its_own():
    """For dropout and the mixup of every stream."""
    config, found = make_config(video={}, image={}), []
    for config.seed, step in itertools.product((0, 1), (0, 1)):
        dropout, mixup = steps.step_keys(config, step)
        found += [dropout, *mixup.values()]
    bits = {tuple(jax.random.key_data(key).tolist()) for key in found}
    assert len(bits) == len(found) == 12


def test_another_seed_draws_other_parameters():
    config, drawn = make_config(video={}), []
    config.clip.update(frames=CLIP[0], size=CLIP[1])
    config.model.update(depth=1, width=12, mlp_dim=16, heads=2, tubes="image")
    mesh = make_mesh(config, jax.devices()[:1])
    for config.seed in (0, 1):
        params = Program(config, {"video": 5}, mesh).init({}).params
        drawn.append(flatten_dict(params, sep="/"))
    same = {name for name, x in drawn[0].items() if np.array_equal(x, drawn[1][name])}
    random = {name for name in drawn[0] if name.endswith(("/kernel", "/probe"))}
    assert same == drawn[0].keys() - random | {"head_video/kernel"}


def test_parts_of_a_batch_have_dropout_of_their_own(model, batches):
    """Both are the same clips, of which those of one part count."""
    config = make_config(video={})
    config.optimizer.accumulate_steps = 2
    twice = {key: np.repeat(x[:2], 2, axis=0) for key, x in batches["video"].items()}
    norms = []
    for weight in ((1, 0, 1, 0), (0, 1, 0, 1)):
        video = twice | {"weight": np.float32(weight)}
        _, seen = run(model.with_options(dropout=0.3), config, {"video": video})
        norms.append(seen["gradient_norm"])
    assert abs(norms[0] - norms[1]) > 0.01 * norms[0]


def test_bfloat16_is_near_float32(model, batches):
    config = make_config(video={}, image={})
    config.optimizer.warmup_steps = 0
    _, exact = run(model, config, batches, n=3)
    state, rough = run(model.with_options(dtype="bfloat16"), config, batches, n=3)
    assert rough["loss"] != exact["loss"]
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
    np.testing.assert_allclose(rough["loss"], exact["loss"], rtol=2e-2)


def test_the_first_moment_takes_half_the_memory(model, batches):
    config = make_config(image={})
    exact, _ = run(model, config, {"image": batches["image"]}, n=3)
    config.optimizer.first_moment_dtype = "bfloat16"
    rough, _ = run(model, config, {"image": batches["image"]}, n=3)
    adam = rough.optimizer[1]
    for moment, dtype in ((adam.mu, "bfloat16"), (adam.nu, "float32")):
        assert {x.dtype.name for x in jax.tree.leaves(moment)} == {dtype}
    up, expected = (
        s.params["encoder"]["block_0"]["mlp"]["up"]["kernel"] for s in (rough, exact)
    )
    np.testing.assert_allclose(up, expected, atol=1e-3)
    assert not np.array_equal(up, expected)


def test_learning_rate_warms_up_and_decays_to_zero():
    config = make_config()
    config.total_steps = 110
    config.optimizer.update(learning_rate=2.0, warmup_steps=10)
    rate = learning_rate(config)
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(60), rate(110)], [0, 1, 2, 1, 0], atol=1e-6
    )


def test_gradients_are_clipped_by_their_global_norm(model, batches):
    config = make_config(video={})
    _, metrics = run(model, config, {"video": batches["video"]})
    norm = float(metrics["gradient_norm"])
    params = init_params(model, jax.random.key(1), CLIP)
    gradient = jax.tree.map(np.ones_like, jax.device_get(params))
    scale = float(optax.global_norm(gradient))
    config.optimizer.update(clip_norm=norm)
    clipped = make_optimizer(config)
    state = jax.jit(clipped.init)(params)
    _, (_, adam, *_) = jax.jit(clipped.update)(gradient, state, params)
    np.testing.assert_allclose(
        adam.mu["stem"]["tube_0"]["bias"], 0.1 * norm / scale, rtol=1e-5
    )


def test_a_gradient_that_is_not_finite_is_named():
    fine = {"loss": 1.0, "gradient_norm": 2.0}
    steps.check_finite(fine, 3)
    with pytest.raises(steps.NonFiniteLoss, match="gradient_norm is nan at step 3"):
        steps.check_finite(fine | {"gradient_norm": np.nan}, 3)
