"""Files of still pictures, and what may follow their end."""

import io

import numpy as np
from PIL import Image

from tests.video.written import moving, write_video

Y, X = np.mgrid[:48, :64]
PICTURE = np.stack([4 * X, 5 * Y, 2 * (X + Y)], -1).astype(np.uint8)


def written(picture, file_format, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, file_format, **options)
    return file.getvalue()


OTHER = PICTURE[::-1, ::-1].copy()
AFTER = {
    "a newline": b"\n",
    "text": b"<html>no such page</html>" * 200,
    "zeros": bytes(5000),
    "a JPEG": written(OTHER, "JPEG"),
    "a larger JPEG": written(OTHER.repeat(3, 0).repeat(3, 1), "JPEG"),
    "an mp4": write_video(moving(8)),
    "a transport stream": write_video(moving(8), 25, "mpegts", "mpeg2video"),
    "a zip": b"PK\3\4" + np.random.default_rng(0).bytes(9000),
}
