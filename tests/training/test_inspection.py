"""What is said to go into the model is what goes into it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_tube_vit.config import default_config, stream
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.input.pipeline import training_batches
from sparse_tube_vit.models.tubes import normalize
from sparse_tube_vit.training import inspection
from sparse_tube_vit.training import step as steps
from sparse_tube_vit.training.state import TrainState
from tests.datasets.builders.official import encode
from tests.datasets.written import write_folder

DAMAGED = "train/bee/1.mp4"
FILES = {
    f"train/{label}/{i}.mp4": encode(20 * i + start)
    for label, start in (("ant", 40), ("bee", 120))
    for i in range(3)
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Clips of two classes, one of which is damaged, with mixup and without."""
    root = tmp_path_factory.mktemp("clips")
    write_folder(root, FILES | {DAMAGED: b"damaged"})
    config = default_config()
    config.total_steps, config.data_dir = 9, str(root)
    config.optimizer.warmup_steps = 1
    config.clip.update(frames=2, fps=16.0, size=16)
    source = {"kind": "video", "dataset": "video_folder/clips", "batch_size": 4}
    augmented = {"randaugment_layers": 2, "color_jitter": 0.4}
    config.streams.plain = stream(**source, head="a", label_smoothing=0.2)
    config.streams.mixed = stream(**source, head="b", mixup=0.8, **augmented)
    return config


def seen_in_training(config, step, monkeypatch):
    """Clips, targets and weights of a step by stream, as a model and its loss get them.

    Of weights it is told which are 0.
    """
    seen = {name: {} for name in config.streams}
    names = iter(config.streams)  # in the order of their losses

    def keep(name, key):
        return lambda x: seen[name].update({key: np.array(x)})

    def apply(variables, videos, heads, **_):
        assert heads == {name: s.head for name, s in config.streams.items()}
        for name, x in videos.items():
            jax.debug.callback(keep(name, "videos"), normalize(x))
        return {
            name: variables["params"]["logits"] + jnp.zeros((len(x), 2))
            for name, x in videos.items()
        }

    def cross_entropy(logits, targets, weights, loss):
        name = next(names)
        jax.debug.callback(keep(name, "targets"), targets)
        jax.debug.callback(keep(name, "weights"), weights)
        return logits.sum()

    monkeypatch.setattr(steps, "cross_entropy", cross_entropy)
    model = types.SimpleNamespace(classes={"a": 2, "b": 2}, apply=apply)
    state = TrainState.create({"logits": jnp.zeros(2)}, optax.sgd(0.1), config)
    state = state.replace(step=jnp.int32(step - 1))
    batches = {
        name: next(
            training_batches(
                reading.open_split(s.dataset, s.split, config.data_dir),
                *(name, s, config.clip, config.loader, config.seed, step - 1),
            )
        )
        for name, s in config.streams.items()
    }
    arrays = {
        name: {key: batch[key] for key in ("video", "label", "weight")}
        for name, batch in batches.items()
    }
    steps.make_train_step(model, optax.sgd(0.1), config)(state, arrays)
    jax.effects_barrier()
    return seen, batches


@pytest.mark.parametrize("step", [1, 2, 5])
def test_examples_are_what_the_model_and_its_loss_get(config, step, monkeypatch):
    seen, batches = seen_in_training(config, step, monkeypatch)
    shown = dict(inspection.examples_of_step(config, step))
    assert list(shown) == ["mixed", "plain"]
    for name, some in shown.items():
        assert len(some) == 4
        ids = batches[name]["id"].tolist()
        for i, example in enumerate(some):
            video, target = seen[name]["videos"][i], seen[name]["targets"][i]
            np.testing.assert_allclose(
                normalize(jnp.asarray(example.video)), video, atol=1 / 127
            )
            assert (not example.problem) == (seen[name]["weights"][i] > 0)
            words = {
                f"{share:.2f} {label}" if share < 1 else label
                for label, share in zip(("ant", "bee"), target, strict=True)
                if share > (0.1 + 1e-6 if name == "plain" else 0)
            }
            assert {*example.target.split(", ")} == words
            if name == "plain":
                assert example.ids == (ids[i],)
            else:
                (mine, first), (other, second) = (n.split() for n in example.ids)
                assert (first, second) == (ids[i], ids[i - 1])
                assert float(mine) + float(other) == pytest.approx(1, abs=0.011)
                labels = [n.split("/")[1] for n in (first, second)]
                if labels[0] != labels[1]:
                    assert f"{mine} {labels[0]}" in words


def test_an_example_without_weight_says_why(config):
    found = 0
    for step in (1, 2, 3):
        for name, some in inspection.examples_of_step(config, step):
            for example in some:
                damaged = any(DAMAGED in name for name in example.ids)
                assert damaged == bool(example.problem)
                if damaged:
                    assert "FFmpeg cannot decode it" in example.problem
                    assert name == "mixed" or not example.video.any()
                    found += 1
    assert found >= 3


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ([0, 1, 0, 0], {}, "dog"),
        ([0.05, 0.85, 0.05, 0.05], {"label_smoothing": 0.2}, "0.85 dog"),
        ([0.3, 0, 0.7, 0], {}, "0.70 eel, 0.30 cat"),
        ([1, 0, 0, 1], {"loss": "sigmoid"}, "cat, fox"),
        (
            [0.05, 0.95, 0.65, 0.05],
            {"loss": "sigmoid", "label_smoothing": 0.1},
            "0.95 dog, 0.65 eel",
        ),
        ([0, 0, 0, 0], {"loss": "sigmoid"}, "no class"),
    ],
)
def test_targets_in_words(target, options, said):
    source = stream(kind="video", dataset="d", head="h", batch_size=1, **options)
    names = ("cat", "dog", "eel", "fox")
    assert inspection._target_text(np.array(target, np.float32), source, names) == said
