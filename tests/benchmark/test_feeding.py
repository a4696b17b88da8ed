import itertools
import re
import sys
import time

import numpy as np
import pytest

from sparse_tube_vit.benchmark import __main__ as command
from sparse_tube_vit.benchmark import feeding
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.input import pipeline
from tests import tiny


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_stopwatch_leaves_out_the_stages_that_a_stage_calls():
    clock = Clock()

    class Work:
        def outer(self):
            clock.now += 1
            for _ in range(3):
                self.inner()
            clock.now += 4
            return "done"

        def inner(self):
            clock.now += 10

        def fail(self):
            clock.now += 100
            raise ValueError

    functions = dict(vars(Work))
    stopwatch = feeding.Stopwatch(clock)
    stages = {"out": [(Work, "outer"), (Work, "fail")], "in": [(Work, "inner")]}
    with stopwatch.around(stages), stopwatch.stage("rest"):
        assert Work().outer() == "done"
        clock.now += 1000
        with pytest.raises(ValueError):
            Work().fail()
        Work().inner()
    assert stopwatch.seconds == {"out": 105, "in": 40, "rest": 1000}
    assert dict(vars(Work)) == functions


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        tiny.shrink_moving_shapes(patch)
        config = tiny.tiny_config(tmp_path_factory.mktemp("data"))
        prepare_embedded(config)
    config.streams.video.flip = True
    return config


def burn(milliseconds, function):
    """The function, but it takes so much CPU time longer."""

    def slowed(*args, **kwargs):
        until = time.process_time() + milliseconds / 1e3
        while time.process_time() < until:
            pass
        return function(*args, **kwargs)

    return slowed


def alone(config, batches):
    """Seconds by stage of the video stream's batches, but for the first."""
    stream, loader = config.streams.video, config.loader.copy_and_resolve_references()
    loader.update(workers=0, threads=0)
    split = reading.open_split(stream.dataset, stream.split, config.data_dir)
    timed = feeding.Alone(
        pipeline.training_batches(split, "video", stream, config.clip, loader, 0)
    )
    for _ in range(1 + batches):
        timed.take()
    assert not timed.problems
    return timed.seconds


def test_time_goes_to_the_stage_that_takes_it(config, monkeypatch):
    as_is = alone(config, 2)
    assert list(as_is) == [*feeding.STAGES, "batching"]
    assert min(as_is.values()) > 0
    # Of the functions of each stage, the first: examples are flipped and stacked.
    places = {stage: functions[0] for stage, functions in feeding.STAGES.items()}
    places["batching"] = (np, "stack")
    for place, milliseconds in zip(places.values(), (4, 8, 3, 6, 50), strict=True):
        monkeypatch.setattr(*place, burn(milliseconds, getattr(*place)))
    slowed = alone(config, 2)
    # 16 examples of 4 frames; 2 batches of 4 arrays: video, label, weight, id, problem.
    calls = dict(zip(places, (16 * 4, 16 * 8, 64 * 3, 16 * 6, 10 * 50), strict=True))
    for stage, milliseconds in calls.items():
        more = 1e3 * (slowed[stage] - as_is[stage])
        assert 0.6 * milliseconds < more < 1.5 * milliseconds, stage


def test_examples_that_do_not_decode_are_told():
    batches = itertools.repeat({"id": ["a", "b"], "problem": ["", "no picture"]})
    timed = feeding.Alone(batches)
    timed.take()
    cost = feeding.Cost({"reading": 1.0}, 1.1, 2, timed.problems)
    assert "1 do not decode; b: no picture" in str(cost)


@pytest.mark.slow
def test_the_command_line(config, tmp_path, monkeypatch, capsys):
    file = tmp_path / "config.py"
    file.write_text(
        "from tests.tiny import tiny_config\n"
        f"def get_config(): return tiny_config({config.data_dir!r})\n"
    )
    arguments = f"input --config {file} --examples 24 --clips_per_second 32"
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments.split()])
    command.main()
    out = capsys.readouterr().out
    rows = re.findall(r"^  (\D+?) +([\d.]+) ms", out, re.MULTILINE)
    stages = [*feeding.STAGES, "batching", "handing over"]
    assert [name for name, _ in rows] == 2 * [*stages, "sum", "total"]
    step = 0.0
    for stream in (rows[:8], rows[8:]):
        *parts, both, total = (float(value) for _, value in stream)
        assert sum(parts) == pytest.approx(both, abs=0.05)
        assert both == pytest.approx(total, rel=0.7)
        step += 8e-3 * total
    # 16 clips a step, two steps a second.
    (printed,) = re.findall(r"takes ([\d.]+) core seconds", out)
    assert float(printed) == pytest.approx(step, abs=0.01)
    (cores,) = re.findall(r"every 0.5 s keeps ([\d.]+) cores", out)
    assert float(cores) == pytest.approx(2 * step, abs=0.1)
