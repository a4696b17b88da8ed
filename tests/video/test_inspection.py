"""What is told of a file, against files whose making is known."""

import numpy as np
import pytest

from sparse_tube_vit.datasets.builders import moving_shapes
from sparse_tube_vit.video import inspection
from sparse_tube_vit.video.limits import UndecodableClip


def test_an_image():
    image = moving_shapes.encode_jpeg(np.zeros((1, 40, 56, 3), np.uint8))
    assert inspection.inspect(image, "image") == {
        "container": "jpeg_pipe",
        "codec": "mjpeg",
        "width": 56,
        "height": 40,
        "frame_rate": None,
        "decoded_frames": 1,
        "seconds": None,
    }


def test_an_image_that_breaks_off_is_an_error():
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    image = moving_shapes.encode_jpeg(noise)
    with pytest.raises(UndecodableClip):
        inspection.inspect(image[: len(image) // 2], "image")


@pytest.mark.parametrize("encoded", [b"", b"no video" * 99], ids=["empty", "text"])
def test_what_is_no_video_is_an_error(encoded):
    with pytest.raises(UndecodableClip):
        inspection.inspect(encoded, "video")
