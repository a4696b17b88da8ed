"""Parts of longer videos, and labels of what a clip shows."""

import dataclasses

import numpy as np
import pytest

from sparse_tube_vit.config import ConfigDict, default_config, evaluation, stream
from sparse_tube_vit.datasets.times import ACTIONS, SPAN
from sparse_tube_vit.input.examples import EvaluationExample, TrainingExample
from sparse_tube_vit.video import decode, opening
from sparse_tube_vit.video.limits import UndecodableClip
from tests.video.written import moving, numbered, write_video

LOADER = default_config().loader
CLIP = ConfigDict({"frames": 4, "fps": 5.0, "size": 16})
# Ten seconds, whose brightness tells the number of a frame: five a second.
VIDEO = write_video(numbered(50), 5)
SOURCE = {"kind": "video", "dataset": "", "head": "", "batch_size": 1}


def record(**more):
    return {"id": "x", "label": np.zeros(3, np.uint8), "video": VIDEO, **more}


def shown(example):
    """The numbers of the frames (..., T)."""
    return (example["video"].mean((-3, -2, -1)) / 5).round().astype(int)


def training(**options):
    source = stream(**SOURCE, loss="sigmoid", crop_area=(1.0, 1.0), **options)
    return TrainingExample.of(CLIP, LOADER, source)


# The second one goes on after the video's end, at 10 s.
@pytest.mark.parametrize("span, first", [((4.0, 6.0), 20), ((8.0, 20.0), 40)])
def test_clips_of_a_part_of_a_video(span, first):
    part, seen = record(**{SPAN: span}), set()
    for seed in range(40):
        frames = shown(training()(part, np.random.default_rng(seed)))
        assert (np.diff(frames) == 1).all()
        seen |= {*frames.tolist()}
    assert seen == set(range(first, first + 9))
    views = EvaluationExample.of(CLIP, LOADER, evaluation(**SOURCE, temporal_views=2))
    example = views(part, None)
    expected = first + np.array([[0, 1, 2, 3], [6, 7, 8, 9]])
    np.testing.assert_array_equal(shown(example), expected)
    assert example["distinct_views"] == 2


def test_a_part_that_is_shorter_than_a_clip_loops_as_a_short_video_does():
    example = training()(record(**{SPAN: (4.0, 4.4)}), np.random.default_rng(0))
    assert {*shown(example).tolist()} == {20, 21}


def test_a_video_that_ends_before_its_part_does_not_decode():
    example = training()(record(**{SPAN: (193.0, 203.0)}), np.random.default_rng(0))
    assert example["weight"] == 0
    assert example["problem"] == "It lasts 10.0 s, but its clip begins at 193 s."


@pytest.mark.parametrize("span", [None, (2.0, 9.0)])
def test_labels_of_the_actions_that_a_clip_shows(span):
    actions = np.array([[0, 0, 3], [2, 2.5, 8], [1, 7.9, 30], [0, 9, 9.2]], np.float32)
    part = record(**{ACTIONS: actions}, **({SPAN: span} if span else {}))
    part["label"] = np.ones(3, np.uint8)
    by_clip, of_video = training(labels="clip"), training()
    found = set()
    for seed in range(40):
        example = by_clip(part, np.random.default_rng(seed))
        frames = shown(example) / 5  # seconds
        expected = [
            any(
                label == c and start <= frames[-1] and frames[0] <= end
                for label, start, end in actions
            )
            for c in range(3)
        ]
        assert example["label"].astype(bool).tolist() == expected
        found.add(tuple(expected))
        other = of_video(part, np.random.default_rng(seed))
        np.testing.assert_array_equal(other["video"], example["video"])
        assert other["label"].tolist() == [1, 1, 1]
        assert other["label"].dtype == example["label"].dtype
    assert len(found) >= 3
    undecodable = by_clip(part | {"video": b"none"}, np.random.default_rng(0))
    assert undecodable["label"].tolist() == [1, 1, 1] and undecodable["weight"] == 0


def test_records_without_times_are_read_as_ever():
    """With the arguments that files have which are in no data set."""
    calls = []

    class Read(TrainingExample):
        def read(self, encoded, rng):
            calls.append(encoded)
            return {}

    fields = dataclasses.asdict(training())
    Read(**fields)(record(), np.random.default_rng(0))
    assert calls == [VIDEO]


@pytest.mark.parametrize(
    "video",
    [
        {"b_frames": 2},
        {"codec": "mpeg4", "container": "avi", "b_frames": 2},  # times by dts
        {"codec": "mpeg2video", "container": "mpeg"},  # guessed times
        {"rate": "30000/1001", "container": "matroska", "codec": "libvpx-vp9"},
    ],
)
@pytest.mark.parametrize("stride", [0.3, 1.0, 2.5])
def test_parts_read_together_are_those_read_one_by_one(video, stride):
    encoded = write_video(moving(160), **video)
    source = evaluation(**SOURCE, temporal_views=2, spatial_views=3)
    example = EvaluationExample.of(CLIP, LOADER, source)

    def spans(duration):
        return [(t, t + 1.0) for t in np.arange(0, duration - 1, stride)]

    read = [*example.read_spans(encoded, spans)]
    assert len(read) >= 2
    for span, views in read:
        expected = example.read(encoded, None, span=span)["video"]
        np.testing.assert_array_equal(views, expected)


def test_frames_between_parts_far_apart_are_not_decoded(monkeypatch):
    encoded = write_video(moving(400), 25)
    example = EvaluationExample.of(CLIP, LOADER, evaluation(**SOURCE))
    decoded, original = [], opening.Video.frames

    def counted(self, *args):
        for frame in original(self, *args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(opening.Video, "frames", counted)
    sparse = [*example.read_spans(encoded, lambda _: [(1, 2), (8, 9), (15, 16)])]
    assert len(sparse) == 3 and len(decoded) < 3 * (20 + 8)
    decoded.clear()
    dense = [(t / 10, t / 10 + 2) for t in range(140)]
    assert len([*example.read_spans(encoded, lambda _: dense)]) == 140
    assert len(decoded) <= 400  # each once


def in_spans(duration):
    return [(t, t + 1.0) for t in np.arange(0, duration - 1, 0.5)]


def test_frames_that_do_not_come_when_told_are_counted(monkeypatch):
    """Parts before the first such frame are read once, those after it by counting."""
    encoded = write_video(moving(160))
    example = EvaluationExample.of(CLIP, LOADER, evaluation(**SOURCE))
    expected = [*example.read_spans(encoded, in_spans)]
    assert len(expected) > 8
    original = decode.frames_by_index

    def stops(video, ticks, wanted, clock):
        for i, frame in original(video, ticks, wanted, clock):
            if clock == "pts" and i > 60:
                return
            yield i, frame

    monkeypatch.setattr(decode, "frames_by_index", stops)
    found = [*example.read_spans(encoded, in_spans)]
    assert [span for span, _ in found] == [span for span, _ in expected]
    for (_, views), (_, others) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(views, others)


def test_damage_costs_the_parts_after_it_alone(monkeypatch):
    encoded = write_video(moving(160))
    example = EvaluationExample.of(CLIP, LOADER, evaluation(**SOURCE))
    original = opening.Video.frames

    def damaged(self, *args):
        for frame in original(self, *args):
            if frame.time > 3:
                raise UndecodableClip("cut short")
            yield frame

    monkeypatch.setattr(opening.Video, "frames", damaged)
    spans = []
    with pytest.raises(UndecodableClip, match="cut short"):
        for span, _ in example.read_spans(encoded, in_spans):
            spans.append(span)
    assert spans == [(0, 1), (0.5, 1.5), (1, 2), (1.5, 2.5), (2, 3)]


def test_an_image_has_no_parts_in_time():
    example = EvaluationExample.of(CLIP, LOADER, evaluation(**SOURCE))
    with pytest.raises(UndecodableClip, match="It is an image"):
        [*example.read_spans(write_video(moving(1)), in_spans)]
