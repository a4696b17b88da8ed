"""Which part of a file is the clip of an annotation."""

import pytest

from sparse_tube_vit.datasets.times import span_in_file
from sparse_tube_vit.video.limits import UndecodableClip


@pytest.mark.parametrize(
    ("seconds", "start", "end", "part"),
    [
        (300, 193, 203, (193, 203)),  # the whole video
        (202.6, 193, 203, (193, 202.6)),  # which YouTube rounds up
        (198.5, 193, 203, (193, 198.5)),
        (60, 0, 10, (0, 10)),
        (10.03, 193, 203, None),  # the clip
        (10.9, 0, 10, None),
        (7.2, 193, 203, None),  # the end of the video
        (14.4, 193, 203, None),  # cut at key frames
    ],
)
def test_parts(seconds, start, end, part):
    assert span_in_file(seconds, start, end) == part


@pytest.mark.parametrize("seconds", [10.0, 7.2, 14.4])
def test_a_file_that_may_be_any_of_several_clips(seconds):
    with pytest.raises(UndecodableClip, match="any clip .* name it <id>_<start>_<end>"):
        span_in_file(seconds, 193, 203, shared=True)
    assert span_in_file(300, 193, 203, shared=True) == (193, 203)


def test_a_file_that_is_neither_clip_nor_video():
    with pytest.raises(UndecodableClip, match="60.0 s, .* from 193 to 203 s"):
        span_in_file(60, 193, 203)
