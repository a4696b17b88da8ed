"""Cores that feed a pod's hosts, by arithmetic and by measuring."""

import json

import pytest

from sparse_tube_vit import preflight as command
from sparse_tube_vit.config import default_config, stream
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.input import workers
from sparse_tube_vit.tpu import summary
from sparse_tube_vit.tpu.chips import Topology
from sparse_tube_vit.tpu.feeding import feeding
from tests.tiny import tiny_config
from tests.tpu.written import found

SHARES = 16  # of v5e:8x8


@pytest.fixture
def config():
    config = default_config()
    config.data_dir = "/nowhere"
    videos = {"kind": "video", "dataset": "kinetics400", "head": "kinetics400"}
    images = {"kind": "image", "dataset": "imagenet2012", "head": "imagenet"}
    config.streams.video = stream(**videos, batch_size=256)
    config.streams.image = stream(**images, batch_size=256)
    return config


def test_the_cores_of_a_host_by_hand(config):
    # 16 videos and 16 images on each of 16 hosts, in 53 ms.
    pod = Topology.parse("v5e:8x8")
    fed = feeding(config, pod, SHARES, 0.053, {"video": 0.0855, "image": 0.0045})
    assert (fed.hosts, fed.available) == (16, 110)
    assert fed.needed == pytest.approx(16 * (0.0855 + 0.0045) / 0.053)
    assert fed.suffices and "27.2 cores a host" in fed.verdict()
    assert "ct5lp-hightpu-4t has 112 vCPUs, 2 of them" in fed.verdict()
    # Pairs of hosts feed the same share.
    twice = feeding(config, pod, 8, 0.053, {"video": 0.0855, "image": 0.0045})
    assert twice.needed == pytest.approx(2 * fed.needed)


def test_estimates_are_those_that_were_measured(config):
    def milliseconds(**clip):
        config.clip.update(**clip)
        fed = feeding(config, Topology.parse("v5e:8x8"), SHARES, 1.0, {})
        assert {s.source for s in fed.streams.values()} == {"estimated"}
        video, image = fed.streams["video"], fed.streams["image"]
        seconds = (video.seconds, video.transcoded, image.seconds)
        return [pytest.approx(1e3 * x, abs=0.2) for x in seconds]

    assert milliseconds(frames=32, size=224) == [85.5, 34.5, 4.5]
    assert milliseconds(frames=64, size=224) == [103.9, 52.9, 4.5]
    assert milliseconds(frames=32, size=112) == [71.7, 20.7, 4.0]


def test_too_few_cores_end_with_a_way_out(config):
    config.streams.video.batch_size = 2048
    pod = Topology.parse("v5e:8x8")
    fed = feeding(config, pod, SHARES, 0.05, {})
    assert not fed.suffices
    verdict = fed.verdict()
    # 128 videos of 85.5 ms and 16 images of 4.5 ms on a host, with 110 cores.
    assert "220.3 cores a host" in verdict
    assert "a step would take 100 ms instead of 50" in verdict
    assert "prepare --transcode short_side=256,gop=30,crf=23 (about 89.8 c" in verdict
    assert "fewer clip.frames" in verdict
    # Cheap already: transcoding is no way out.
    given = {"video": 0.02, "image": 0.5}
    assert "transcode" not in feeding(config, pod, SHARES, 0.05, given).verdict()


def test_the_command_warns_and_says_so_in_json(monkeypatch, capsys):
    monkeypatch.setattr(command, "preflight", lambda *_: found())
    arguments = ["--config", "configs/kinetics.py", "--topology", "v5e:2x4", "--json"]
    command.main([*arguments, "--example_ms", "video=999999999"])
    printed = capsys.readouterr()
    numbers = json.loads(printed.out)["feeding"]
    assert numbers["machine"] == "ct5lp-hightpu-8t" and numbers["vcpus"] == 224
    assert numbers["streams"]["video"]["source"] == "given"
    assert not numbers["suffices"]
    assert numbers["cores_needed"] > numbers["cores_available"] == 222
    assert "do not suffice, and a step would take" in printed.err
    for wrong in ("video", "clips=3", "video=x", "video=-1"):
        with pytest.raises(SystemExit):
            command.main([*arguments, "--example_ms", wrong])
        assert "argument --example_ms: " in capsys.readouterr().err


def test_what_is_prepared_is_measured(data_dir, monkeypatch):
    config = tiny_config(data_dir)
    monkeypatch.setattr(workers, "TIMED_EXAMPLES", 2)
    fed = feeding(config, Topology.parse("v5e:2x4"), 1, 1.0, {"image": 0.001})
    video, image = fed.streams["video"], fed.streams["image"]
    assert (video.source, image.source) == ("measured here", "given")
    assert 0 < video.seconds < 1 and video.examples == 8
    split = reading.open_split("moving_shapes/videos", "train", data_dir, "video")
    assert workers.stream_seconds(config, "video", split, 1) > 0
    assert "measured here" in "".join(summary._feeding_table(fed))
