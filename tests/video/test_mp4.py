"""Claims of MP4 files, against files that FFmpeg writes, and hidden in many ways."""

import numpy as np
import pytest

from sparse_tube_vit.video.mp4 import claimed_samples
from tests.video.boxes import (
    MANY,
    WAYS,
    claiming,
    compressed,
    edited,
    fragmented,
    headed,
    numbers,
    with_edits,
    with_sound,
)
from tests.video.written import KINDS, moving, write_video


@pytest.mark.parametrize("kind", KINDS)
def test_what_ffmpeg_writes_lists_its_samples(kind):
    container, codec, options = KINDS[kind]
    video = write_video(moving(4), 25, container, codec, **options)
    assert claimed_samples(video) == 0


def test_fragments_and_uncompressed_sound_claim_little():
    assert claimed_samples(fragmented(write_video(moving(24)))) <= 24
    assert claimed_samples(with_sound(2)) == 0


@pytest.mark.parametrize("way", WAYS)
def test_claims_are_counted_however_they_are_made(way):
    assert claimed_samples(WAYS[way]()) > 2**20


def test_a_large_compressed_header_is_not_read():
    assert claimed_samples(headed(lambda moov: compressed(bytes(2**25)))) > 2**20


def test_edits_copy_the_list_of_samples():
    assert claimed_samples(with_edits(1)) == 0
    assert claimed_samples(with_edits(2)) == 240 // 8
    assert claimed_samples(with_edits(50_000)) > 2**20
    # Those that are not in the file are not read.
    more = with_edits(2).replace(b"elst" + numbers(0, 2), b"elst" + numbers(0, MANY))
    assert claimed_samples(more) == 240 // 8


def test_sound_that_is_not_in_the_file_counts():
    sound = {b"hdlr": bytes(8) + b"soun" + bytes(13)}
    assert claimed_samples(edited(claiming(), sound)) == MANY


def test_what_is_no_mp4_claims_nothing():
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 100, 10_000):
        assert claimed_samples(rng.bytes(size)) == 0
    deep = b"".join(numbers(2**31) + b"moov" for _ in range(10_000))
    assert claimed_samples(deep) == 0
