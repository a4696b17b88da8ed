"""Mutants of written files: each is a value or a named error, in bounded memory."""

import contextlib
import io
import time

import numpy as np
import pytest
from PIL import Image

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.video import inspection
from sparse_tube_vit.video.conversion import Crop
from sparse_tube_vit.video.decode import decode
from sparse_tube_vit.video.limits import LIMITS
from sparse_tube_vit.video.opening import kind_of
from sparse_tube_vit.video.transcode import Transcode
from tests.video import memory
from tests.video.boxes import fragmented
from tests.video.written import KINDS, moving, write_video

SEED = 13
SMALL = {"cpu_seconds": 5.0, "frame_pixels": 2**20, "packets": 1000}
MEMORY = 100 * 2**20  # bytes; a frame of those limits takes up to 8 MB
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def written():
    """Encoded files, each of another container or codec."""
    for container, codec, options in KINDS.values():
        yield write_video(moving(12), 25, container, codec, **options)
    yield fragmented(write_video(moving(12)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "MPO"):
        file = io.BytesIO()
        options = {"icc_profile": bytes(100)} if name != "PPM" else {}
        Image.fromarray(moving(1)[0]).save(file, name, exif=exif, **options)
        yield file.getvalue()


def mutant(files, rng):
    """One of the files, changed at one to three places, in one of seven ways."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 4)):
        # Headers decide more than the pictures' data.
        end = len(data) if rng.random() < 0.5 else min(len(data), 1000)
        at = int(rng.integers(max(1, end)))
        n = int(rng.integers(1, 64))
        match rng.integers(7):
            case 0:
                data[at : at + 1] = rng.bytes(1)
            case 1:
                number = int(rng.choice(NUMBERS))
                data[at : at + 4] = number.to_bytes(4, rng.choice(["big", "little"]))
            case 2:
                data[at : at + n] = rng.bytes(n)
            case 3:
                del data[at : at + n]
            case 4:
                data[at:at] = data[at : at + n] * int(rng.integers(1, 20))
            case 5:
                del data[at:]
            case 6:
                other = files[rng.integers(len(files))]
                data[at:] = other[int(rng.integers(len(other))) :]
    return bytes(data)


def read(data, rng):
    """Reads a file in all ways; anything but a value or a named error is raised."""
    for kind in ("video", "image"):
        with contextlib.suppress(TubeViTError):
            columns = inspection.inspect(data, kind)
            assert columns["decoded_frames"] and columns["width"] and columns["height"]
    with contextlib.suppress(TubeViTError):
        assert kind_of(data) in ("video", "image")
    with contextlib.suppress(TubeViTError):
        times = rng.random(3)
        clip, shown = decode(
            data,
            lambda duration: times * duration,
            lambda height, width: Crop(0, 0, height, width, 16, 16),
        )
        assert clip.shape == (3, 16, 16, 3) and len(shown) == 3
    with contextlib.suppress(TubeViTError):
        assert Transcode(short_side=16)(data)


def read_mutants(count):
    """Returns the mutants that fail, take long or much memory, and why."""
    for name, value in SMALL.items():
        object.__setattr__(LIMITS, name, value)
    files, wrong = list(written()), []
    for file in files:
        read(file, np.random.default_rng(SEED))
    for i in range(count):
        rng = np.random.default_rng([SEED, i])
        data, started = mutant(files, rng), time.thread_time()
        try:
            peak = memory.peak(read, data, rng)
        except Exception as error:
            wrong.append(f"mutant {i}: {error!r}")
            continue
        seconds = time.thread_time() - started
        if peak > MEMORY or seconds > 2 * SMALL["cpu_seconds"]:
            wrong.append(f"mutant {i}: {peak >> 20} MiB, {seconds:.1f} s")
    return wrong


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutants_are_a_value_or_a_named_error(count):
    assert memory.in_process(read_mutants, count) == []
