"""What preparation accepts, training, evaluation and inference read, and no more."""

import io

import numpy as np
import pytest
from PIL import Image

from sparse_tube_vit.config import ConfigDict, default_config, stream
from sparse_tube_vit.datasets import manifest
from sparse_tube_vit.input.examples import EvaluationExample, TrainingExample
from sparse_tube_vit.video.limits import UndecodableClip
from tests.video.files import AFTER, PICTURE, written
from tests.video.written import moving, write_video

RATES = (1.0, 8.0, 25.0, 30.0, 60.0)  # frames a second of the model's clips


def problems(encoded, kind, rates=RATES, draws=8):
    """Reasons of all who read a file, preparation first; "ok" where they accept it."""

    def of(make, rate, seed):
        example = make(kind, 4 if kind == "video" else 1, rate, 32)
        try:
            example.read(encoded, np.random.default_rng(seed))
        except UndecodableClip as error:
            return str(error)
        return "ok"

    yield manifest.Row.of("train", "0", "dog", encoded, kind).status
    for rate in rates:
        yield of(EvaluationExample, rate, 0)
        for seed in range(draws):
            yield of(TrainingExample, rate, seed)


def a_row(width, height, file_format="JPEG"):
    file = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(file, file_format)
    return file.getvalue()


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_with_bytes_after_its_end_is_read_by_all(file_format, after):
    encoded = written(PICTURE, file_format) + AFTER[after]
    for kind in ("image", "video"):
        assert {*problems(encoded, kind)} == {"ok"}


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "MPO", "TIFF"])
def test_an_image_example_is_the_first_picture_whatever_the_draw(file_format):
    others = [Image.fromarray(np.roll(PICTURE, 8 * i, 1)) for i in range(1, 9)]
    alone = written(PICTURE, "JPEG" if file_format == "MPO" else file_format)
    encoded = written(PICTURE, file_format, save_all=True, append_images=others)
    for rate in RATES:
        example = TrainingExample("image", 1, rate, 32)
        for seed in range(5):
            draws = (np.random.default_rng(seed) for _ in range(2))
            ours, first = (
                example.sample(data, next(draws))[0].astype(int)
                for data in (encoded, alone)
            )
            assert np.abs(ours - first).mean() < 2
        evaluated, first = (
            EvaluationExample("image", 1, rate, 32).read(data, None)["video"]
            for data in (encoded, alone)
        )
        assert np.abs(evaluated.astype(int) - first).mean() < 2


def training(kind, **options):
    """The map of a stream that augments nothing but by the options."""
    clip = ConfigDict({"frames": 4, "fps": 5.0, "size": 64})
    source = {"kind": kind, "dataset": "", "head": "", "batch_size": 1}
    source |= {"flip": False, "crop_area": (1.0, 1.0)} | options
    return TrainingExample.of(clip, default_config().loader, stream(**source))


@pytest.mark.parametrize("least, most", [(0.25, 0.25), (0.9, 1.0)])
def test_crops_have_the_area_of_the_stream(least, most):
    """By the pixels' values, which are their places in the picture."""
    y, x = np.mgrid[:256, :256].astype(np.uint8)
    encoded, areas = written(np.stack([x, y, x], -1), "PNG"), []
    example = training("image", crop_area=(least, most))
    for seed in range(40):
        (crop,) = example.read(encoded, np.random.default_rng(seed))["video"]
        inner = crop[8:-8, 8:-8].astype(float)  # scaling repeats the edges
        across, down = inner[..., 0].mean(0), inner[..., 1].mean(1)
        width, height = (np.polyfit(range(48), p, 1)[0] * 64 for p in (across, down))
        areas.append(width * height / 256**2)
    # Values are rounded.
    assert least - 0.02 < min(areas) and max(areas) < most + 0.02


@pytest.mark.parametrize("flip", [True, False])
def test_every_other_clip_is_mirrored_as_a_whole_if_the_stream_says_so(flip):
    dark_left = np.full((20, 48, 64, 3), 20, np.uint8)
    dark_left[:, :, 32:] = 230
    encoded, mirrored = write_video(dark_left, 5), 0
    example = training("video", flip=flip)
    for seed in range(60):
        clip = example.read(encoded, np.random.default_rng(seed))["video"]
        left, right = clip[:, :, :24].mean((1, 2, 3)), clip[:, :, 40:].mean((1, 2, 3))
        assert len({*(left > right)}) == 1  # all frames alike
        assert (abs(left - right) > 200).all()
        mirrored += left[0] > right[0]
    assert 15 <= mirrored <= 45 if flip else mirrored == 0


@pytest.mark.parametrize(
    "encoded, kind, reason",
    [
        (a_row(2100, 100), "image", "100 x 2100 pixels, one side more than 20"),
        (a_row(30, 700), "image", "700 x 30 pixels, one side more than 20"),
        (a_row(2100, 100, "PNG"), "video", "100 x 2100 pixels"),
        (written(PICTURE, "JPEG")[:-300], "image", "Invalid data"),
        (written(PICTURE, "PNG")[:-300], "image", "decode"),
        (written(PICTURE, "TIFF", compression="jpeg"), "image", "JPEG inside"),
        (
            write_video(moving(4)[:, :2], 25, "mp4", "mpeg4"),
            "video",
            "2 x 64 pixels, one side more than 20",
        ),
        (
            write_video(moving(4), 25, "matroska", tags={"sample_aspect_ratio": 30}),
            "video",
            "48 x 1920 pixels, one side more than 20",
        ),
        (
            write_video(moving(4), 25, "matroska", "ffv1", tags={"colorspace": 14}),
            "video",
            "ICtCp",
        ),
        (b"<html>no such page</html>" * 50, "image", "Invalid data"),
    ],
)
def test_what_training_refuses_preparation_refuses_with_the_same_words(
    encoded, kind, reason
):
    (only,) = {*problems(encoded, kind)}
    assert reason in only


def test_odd_files_of_people_are_read_by_all_or_none(real_data):
    folder = real_data / "odd_inputs"
    if not folder.exists():
        pytest.skip(f"{folder} is absent")
    images = [*folder.glob("images/*"), *folder.glob("tiffs/*/*")]
    videos = [*folder.glob("videos/*"), *folder.glob("times/*")]
    assert len(images) > 100 and len(videos) > 50
    for kind, paths in (("image", images), ("video", videos)):
        for path in sorted(paths):
            prepared, *others = problems(path.read_bytes(), kind, (8.0,), 3)
            # Of a video with a damaged part, a clip may be whole.
            if kind == "image" or prepared == "ok":
                assert {*others} == {prepared}, path.name
