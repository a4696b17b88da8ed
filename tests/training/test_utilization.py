"""Rates against numbers counted by hand, and predictions that are of another step."""

import json
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from sparse_tube_vit.config import default_config, stream
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.training import utilization
from sparse_tube_vit.training.utilization import (
    PREDICTION,
    PredictedStep,
    Utilization,
    rates_in_words,
    read_prediction,
    timed_keys,
)

# Of a model of two blocks of width 8 with 16 hidden units, for a clip of 4x16x16: 8
# tokens of 2x8x8 windows. 2 x multiply-adds.
STEM = 2 * 8 * (3 * 2 * 8 * 8) * 8
QKV_AND_OUT, MLP, ATTENTION = 4 * 2 * 8 * 8 * 8, 2 * 2 * 8 * 8 * 16, 2 * 2 * 8 * 8 * 8
BLOCKS = 2 * (QKV_AND_OUT + MLP + ATTENTION)
# Keys and values of 8 tokens, one query and its output; scores and weighted values.
POOLING = 2 * (2 * 8 + 2) * 8 * 8 + 2 * 2 * 8 * 8
HEAD = 2 * 8 * 3
FORWARD = STEM + BLOCKS + POOLING + HEAD


def tiny():
    config = default_config()
    config.total_steps = 10
    config.clip.update(frames=4, size=16)
    config.model.update(depth=2, width=8, mlp_dim=16, heads=2)
    config.model.tubes = ({"kernel": (2, 8, 8), "stride": (2, 8, 8)},)
    config.optimizer.warmup_steps = 2
    videos = {"kind": "video", "dataset": "mine", "head": "mine"}
    config.streams.clips = stream(**videos, batch_size=6)
    config.streams.more = stream(**videos, batch_size=2)
    return config


def mesh(count=4):
    devices = np.array(jax.devices()[:count]).reshape(count, 1, 1)
    return Mesh(devices, ("data", "fsdp", "tensor"))


def measured(config, prediction=None):
    return Utilization(config, make_model(config, {"mine": 3}), mesh(), prediction)


def test_rates_are_those_counted_by_hand():
    # 8 examples, 3 forward passes each, on 4 devices in half a second.
    assert measured(tiny()).rates(1, 0.5) == {
        "clips/examples_per_second": 12,
        "more/examples_per_second": 4,
        "flops_per_second_per_device": 8 * 3 * FORWARD / 4 / 0.5,
    }  # no peak of a CPU is known, nor its memory


def test_steps_that_train_less_are_counted_so():
    def flops(config, step):
        return measured(config).rates(step, 1.0)["flops_per_second_per_device"] * 4

    config = tiny()
    config.optimizer.head_steps = 3
    heads = 8 * (FORWARD + 2 * (POOLING + HEAD))
    assert [flops(config, step) for step in (1, 3)] == [heads, heads]
    assert flops(config, 4) == 8 * 3 * FORWARD
    config.optimizer.trained_layers = 1  # half of the blocks
    assert flops(config, 3) == heads
    assert flops(config, 4) == 8 * (3 * FORWARD - 2 * (STEM + BLOCKS // 2))
    config.optimizer.trained_layers = 0
    assert flops(config, 4) == heads


def test_the_mfu_is_of_the_peak_of_the_kind_or_of_the_config(monkeypatch):
    config, prediction = tiny(), PredictedStep(0.25, 2.0**30)
    config.optimizer.head_steps = 1
    monkeypatch.setattr(utilization, "peak_flops", lambda kind: {"cpu": 48e6}[kind])
    rates = measured(config, prediction).rates(2, 0.5)
    assert rates["mfu"] == pytest.approx(8 * 3 * FORWARD / 4 / 0.5 / 48e6)
    assert rates["predicted/step_seconds"] == 0.25
    assert rates["predicted/mfu"] == pytest.approx(2 * rates["mfu"])
    assert rates["predicted/device_bytes"] == 2**30
    # It is not of the first steps, which cost less.
    alone = measured(config, prediction).rates(1, 0.5)
    assert "mfu" in alone and not [name for name in alone if "predicted" in name]
    config.peak_flops = 24e6
    assert measured(config).rates(2, 0.5)["mfu"] == pytest.approx(2 * rates["mfu"])


def logged(config, caplog, **device):
    """What the log says on devices of another kind."""
    devices = types.SimpleNamespace(size=1, flat=[types.SimpleNamespace(**device)])
    caplog.clear()
    with caplog.at_level("INFO", "sparse_tube_vit"):
        model = make_model(config, {"mine": 3})
        Utilization(config, model, types.SimpleNamespace(devices=devices))
    return caplog.text


def test_a_peak_that_is_not_known_is_asked_for(caplog):
    config = tiny()
    h100 = {"platform": "gpu", "device_kind": "NVIDIA H100 80GB HBM3"}
    assert "whose peak is 989 TFLOP/s" in logged(config, caplog, **h100)
    other = {"platform": "gpu", "device_kind": "NVIDIA RTX 9"}
    text = logged(config, caplog, **other)
    assert "the peak of NVIDIA RTX 9 is not known" in text
    assert "--config.peak_flops" in text
    cpu = {"platform": "cpu", "device_kind": "cpu"}
    assert "peak" not in logged(config, caplog, **cpu)
    config.peak_flops = 1.5e13
    assert "peak is 15 TFLOP/s" in logged(config, caplog, **other)


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    def device(**stats):
        return types.SimpleNamespace(memory_stats=lambda: stats or None)

    def memory(*devices):
        monkeypatch.setattr(utilization.jax, "local_devices", lambda: devices)
        rates = measured(tiny()).rates(1, 1.0)
        return {n: x for n, x in rates.items() if n.startswith("device_bytes")}

    full = device(bytes_in_use=5, peak_bytes_in_use=9, bytes_limit=16, num_allocs=3)
    assert memory(device(bytes_in_use=4, peak_bytes_in_use=7), full) == {
        "device_bytes/in_use": 5,
        "device_bytes/peak": 9,
        "device_bytes/limit": 16,
    }
    assert memory(device()) == {}
    assert memory(device(bytes_in_use=4, peak_bytes_in_use=-1)) == {
        "device_bytes/in_use": 4
    }


def test_rates_in_words():
    rates = {
        "step_seconds": 0.0604,
        "video/examples_per_second": 4238.4,
        "image/examples_per_second": 4238.4,
        "flops_per_second_per_device": 68.2e12,
    }
    assert rates_in_words(rates) == (
        "0.0604 s a step, 4,238.4 video/s, 4,238.4 image/s, 68.2 TFLOP/s a device"
    )
    rates |= {"mfu": 0.346, "predicted/mfu": 0.414, "predicted/step_seconds": 0.0505}
    rates |= {"device_bytes/in_use": 2**30, "device_bytes/peak": 12 * 2**30}
    rates |= {"device_bytes/limit": 16 * 2**30, "predicted/device_bytes": 11 * 2**30}
    assert rates_in_words(rates) == (
        "0.0604 s a step (0.0505 predicted), 4,238.4 video/s, 4,238.4 image/s, "
        "68.2 TFLOP/s a device, MFU 34.6% (41.4% predicted), 1.00 GiB in use, "
        "peak 12.00 GiB (11.00 GiB predicted)"
    )


def predicted(config, **changes):
    """The parts of preflight's JSON that a run reads."""
    return {
        "topology": "v5e:2x2",
        "chip": "v5e",
        "mesh": {"data": 4, "fsdp": 1, "tensor": 1},
        "config": timed_keys(config),
        "step_seconds": {"all": 0.05},
        "chip_bytes": {"peak": 3 * 2**30},
    } | changes


@pytest.fixture
def read(tmp_path, monkeypatch, caplog):
    """Returns a function that reads a prediction as on v5e: (it, the log's text)."""
    monkeypatch.setattr(utilization, "accelerator", lambda kind: "v5e")

    def read(config, content):
        if content is not None:
            (tmp_path / PREDICTION).write_text(json.dumps(content))
        caplog.clear()
        return read_prediction(tmp_path, config, mesh()), caplog.text

    return read


def test_a_prediction_of_the_same_step_is_read(read):
    config = tiny()
    assert read(config, None) == (None, "")
    told = predicted(config)
    config.optimizer.learning_rate = 0.5  # takes no time
    config.streams.clips.dataset = "other"
    assert read(config, told) == (PredictedStep(0.05, 3 * 2**30), "")


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"model.remat": "full"}, "model.remat is 'none' there, 'full' here"),
        ({"clip.frames": 2}, "clip.frames is 4 there, 2 here"),
        ({"streams.clips.batch_size": 8}, "streams.clips.batch_size is 6 there, 8"),
        ({"optimizer.trained_layers": 1}, "optimizer.trained_layers is None there, 1"),
    ],
)
def test_a_prediction_of_another_step_is_left_out(read, change, problem):
    config, told = tiny(), predicted(tiny())
    config.update_from_flattened_dict(change)
    found, text = read(config, told)
    assert found is None and problem in text


def test_a_prediction_for_other_devices_is_left_out(read):
    config = tiny()
    found, text = read(config, predicted(config, chip="v6e", topology="v6e:2x2"))
    assert found is None and "for v6e:2x2, not for cpu" in text
    other = {"data": 2, "fsdp": 2, "tensor": 1}
    found, text = read(config, predicted(config, mesh=other))
    assert found is None and "mesh.data is 2 there, 4 here" in text


@pytest.mark.parametrize("broken", [[], {}, {"chip": 1}, "text"])
def test_a_file_that_is_no_prediction_is_named(read, broken):
    found, text = read(tiny(), broken)
    assert found is None and "preflight.json is left out" in text
