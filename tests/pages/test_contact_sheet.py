"""The page shows the frames that training reads, at the times that it says."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from sparse_tube_vit.config import default_config, stream
from sparse_tube_vit.datasets.builders import moving_shapes
from sparse_tube_vit.datasets.preparing import verification
from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.datasets.times import SPAN
from sparse_tube_vit.input.examples import TrainingExample
from sparse_tube_vit.pages import contact_sheet
from sparse_tube_vit.video.limits import UndecodableClip
from tests.datasets.written import write_folder
from tests.video.written import numbered, write_video

RATE = 25
NUMBERED = write_video(numbered(50), RATE)


def training(kind="video", **clip):
    config = default_config()
    config.clip.update(**{"frames": 20, "fps": 12.5, "size": 32} | clip)
    options = {"crop_area": (0.5, 0.9), "flip": False}
    source = stream(kind=kind, dataset="d", head="h", batch_size=1, **options)
    return TrainingExample.of(config.clip, config.loader, source)


def brightness(picture):
    return np.asarray(picture).mean()


def test_frames_are_those_of_training_and_times_are_theirs():
    strip = contact_sheet.sample(NUMBERED, training(), seed=7, side=32)
    clip = training().read(NUMBERED, np.random.default_rng(7))["video"]
    pictures = [Image.open(io.BytesIO(picture)) for picture in strip.pictures]
    shown = np.linspace(0, 19, 8).round().astype(int)
    np.testing.assert_allclose(np.diff(strip.times), np.diff(shown) / 12.5)
    for picture, time, frame in zip(pictures, strip.times, clip[shown], strict=True):
        assert picture.size == (32, 32)
        # The brightness is 5 times the number of the frame.
        assert brightness(picture) == pytest.approx(brightness(frame), abs=1)
        assert round(brightness(picture) / 5) == pytest.approx(time * RATE)


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: texts, pictures and sections."""

    def __init__(self, page):
        super().__init__()
        self.sections, self.texts, self.within, self.attributes = [], [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.attributes += [value or "" for _, value in attributes]
        if tag == "section":
            self.sections.append({"h2": "", "p": "", "figcaption": [], "img": []})
        if tag == "img":
            self.sections[-1]["img"].append(dict(attributes)["src"])
        self.within = tag

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        self.texts.append(data)
        if self.sections and self.within in ("h2", "p"):
            self.sections[-1][self.within] += data
        elif self.sections and self.within == "figcaption":
            self.sections[-1]["figcaption"].append(data)


@pytest.fixture
def result(tmp_path):
    """Three classes, of which one has a clip that does not decode alone."""
    files = {"train/wolf/a.mp4": b"no video"}
    for name in ("train/cat & <dog>/a.mp4", "train/wolf/b.mp4", "test/wolf/c.mp4"):
        files[name] = write_video(numbered(40 + len(files)), RATE)
    write_folder(tmp_path, files | {"train/yak/a.mp4": b"nor this"})
    return verification.verify("video_folder/clips", tmp_path)


def test_a_page(result):
    text = contact_sheet.contact_sheet(result, training())
    page = Page(text)
    first, second = page.sections
    assert (first["h2"], second["h2"]) == ("0 cat & <dog>", "1 wolf")
    assert first["p"] == (
        "train train/cat & <dog>/a.mp4: 64x48, 25 fps, 41 frames, 1.64 s"
    )
    assert second["p"].startswith("train train/wolf/b.mp4: 64x48, 25 fps, 42 frames")
    for section, frames in ((first, 41), (second, 42)):
        assert len(section["img"]) == len(section["figcaption"]) == 8
        for source, caption in zip(section["img"], section["figcaption"], strict=True):
            kind, data = source.split(",")
            assert kind == "data:image/jpeg;base64"
            picture = Image.open(io.BytesIO(base64.b64decode(data)))
            time = float(re.fullmatch(r"(\d+\.\d\d) s", caption)[1])
            number = round(brightness(picture) / 5)
            assert number == pytest.approx(time * RATE, abs=0.01) and number < frames
    said = " ".join(page.texts)
    assert "20 frames at 12.5 frames a second (1.60 seconds)" in said
    assert "a random crop of 50% to 90% of the picture, scaled to 32x32 pixels" in said
    for problem, places in result.problems.items():
        assert problem.advice in said
        assert all(place in said for place in places)
    assert "<dog>" not in text
    # Nothing is fetched.
    assert not any("//" in value.partition(",")[0] for value in page.attributes)


def test_clips_are_of_the_part_that_is_the_example(result, monkeypatch):
    read = Split.read
    monkeypatch.setattr(Split, "read", lambda *at: read(*at) | {SPAN: (0.8, 1.2)})
    page = Page(contact_sheet.contact_sheet(result, training(frames=4)))
    assert len(page.sections) == 2
    for section in page.sections:
        times = [float(caption.removesuffix(" s")) for caption in section["figcaption"]]
        assert len(times) == 4 and min(times) >= 0.8 and max(times) < 1.2


def test_what_decodes_but_cannot_be_trained_on_is_told(result, monkeypatch):
    def fail(*_):
        raise UndecodableClip("It is too short.")

    before = len(result.problems[verification.Problem.UNDECODABLE])
    monkeypatch.setattr(TrainingExample, "sample", fail)
    page = Page(contact_sheet.contact_sheet(result, training()))
    assert not page.sections
    places = result.problems[verification.Problem.UNDECODABLE][before:]
    assert {place.rpartition(": ")[2] for place in places} == {"It is too short."}
    assert len(places) == 2


def test_a_page_of_images(tmp_path):
    picture = np.full((1, 24, 32, 3), (40, 90, 200), np.uint8)
    image = moving_shapes.encode_jpeg(picture)
    files = {f"train/{label}/1.jpg": image for label in ("ant", "bee")}
    write_folder(tmp_path, files, "image")
    result = verification.verify("image_folder/clips", tmp_path)
    text = contact_sheet.contact_sheet(result, training("image"))
    page = Page(text)
    assert [s["h2"] for s in page.sections] == ["0 ant", "1 bee"]
    for section in page.sections:
        assert section["figcaption"] == [] and section["p"].endswith(".jpg: 32x24")
        (source,) = section["img"]
        shown = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        colour = np.asarray(shown).mean(axis=(0, 1))
        np.testing.assert_allclose(colour, (40, 90, 200), atol=6)
    assert "frames a second" not in " ".join(page.texts)
