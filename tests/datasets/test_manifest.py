"""What the manifest says of files, against files whose making is known."""

import dataclasses
import fractions
import hashlib
import io
import json

import av
import numpy as np
import pytest

from sparse_tube_vit.datasets import manifest
from tests.video.written import numbered, write_video


def test_a_clip():
    video = write_video(numbered(30), "30000/1001")
    assert manifest.Row.of("train", "a", "wolf", video, "video") == manifest.Row(
        split="train",
        id="a",
        sha256=hashlib.sha256(video).hexdigest(),
        container="mov,mp4,m4a,3gp,3g2,mj2",
        codec="h264",
        width=64,
        height=48,
        frame_rate=fractions.Fraction(30000, 1001),
        decoded_frames=30,
        seconds=1.001,
        label="wolf",
        status="ok",
    )


def test_a_digest_is_of_the_examples_and_their_labels(tmp_path):
    row = manifest.Row("train", "a", "12ab", label="wolf", decoded_frames=3)

    def digest(*rows):
        manifest.write(tmp_path / "manifest.csv", rows)
        return manifest.digest(tmp_path / "manifest.csv")

    of = dataclasses.replace
    damaged = of(row, split="", id=".DS_Store", status="no suffix")
    same = digest(row)
    assert digest(of(row, decoded_frames=4), damaged) == same
    others = {"split": "test", "id": "b", "sha256": "12ac", "label": "bear"}
    digests = {digest(of(row, **{key: value})) for key, value in others.items()}
    digests |= {digest(of(row, span=(1.0, 2.0))), digest(row, row), digest()}
    assert len(digests - {same}) == 7


@pytest.mark.parametrize("container, codec", [("mp4", "libx264"), ("avi", "mpeg4")])
def test_damage_that_ffmpeg_makes_up_for_is_an_error(container, codec):
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    video = write_video(noise, 25, container, codec, b_frames=0)
    with av.open(io.BytesIO(video)) as file:
        ends = [p.pos + p.size for p in file.demux(video=0) if p.size]
    found = set()
    for place in range(len(video) // 8, len(video) // 2, 1000):
        damaged = video[:place] + bytes(20) + video[place + 20 :]
        row = manifest.Row.of("train", "a", "wolf", damaged, "video")
        assert row.sha256 == hashlib.sha256(damaged).hexdigest()
        assert (row.status == "ok") == (row.decoded_frames == 12)
        frame = np.searchsorted(ends, place, side="right")
        # The decoder cannot tell all of it.
        assert row.status in ("ok", f"It is damaged from frame {frame} on.")
        found |= {row.status}
    assert "It is damaged from frame 3 on." in found, found


def test_real_clips(real_data):
    """As the folder's own list has them, which another program made."""
    clips = json.loads((real_data / "clips" / "manifest.json").read_text())
    quick = [entry for entry in clips if (entry["width"] or 0) <= 800]
    assert len(quick) > 25
    for entry in quick:
        encoded = (real_data / "clips" / entry["file"]).read_bytes()
        row = manifest.Row.of("test", entry["file"], "x", encoded, "video")
        assert row.sha256 == entry["sha256"]
        if entry["frames_decoded"] is None:
            assert row.status != "ok" and row.decoded_frames is None
            continue
        size = (entry["width"], entry["height"])
        expected = {
            "container": entry["container"],
            "codec": entry["codec"],
            "decoded_frames": entry["frames_decoded"],
            "frame_rate": fractions.Fraction(entry["frame_rate"]),
            "status": "ok",
        }
        assert {k: getattr(row, k) for k in expected} == expected, entry["file"]
        turned = entry["rotation"] % 180
        assert (row.width, row.height) == (size[::-1] if turned else size)
        # What containers claim is out by a few frames where streams begin late.
        assert row.seconds == pytest.approx(entry["seconds"], abs=0.12), entry["file"]


ROWS = [
    manifest.Row("train", "a", "00ff", "avi", "mpeg4", 320, 240, label="big cat"),
    manifest.Row("a,b", 'x"y', label='say "a, b"', frame_rate=fractions.Fraction(24)),
    manifest.Row("test", "é\n犬\r\n", label="cat;dog", seconds=1 / 3, decoded_frames=0),
    manifest.Row("test", "\udcff.mp4", label=None, status="no such\nvideo"),
    manifest.Row("", "Icon\r", status=""),
]


def test_rows_read_back_as_they_were(tmp_path):
    manifest.write(tmp_path / "m.csv", ROWS)
    assert list(manifest.read(tmp_path / "m.csv")) == ROWS
    lines = (tmp_path / "m.csv").read_bytes().split(b"\n")
    assert lines[0].startswith(b"split,id,sha256,") and lines[0].endswith(b",status")
    assert lines[1] == b"train,a,00ff,avi,mpeg4,320,240,,,,big cat,ok"


LABELS = [
    (),
    ("a",),
    ("a", "b"),
    ("x;y", 'say "z"', "1,2"),
    ("",),
    ("", "\n", "\r", "é"),
]


def test_any_number_of_labels_read_back_as_they_were(tmp_path):
    rows = [dataclasses.replace(ROWS[0], label=labels) for labels in LABELS]
    manifest.write(tmp_path / "m.csv", rows, multi_label=True)
    assert list(manifest.read(tmp_path / "m.csv")) == rows
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert lines[0].endswith(",labels,status") and lines[3].endswith(",a;b,ok")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seconds", "duration"), "m.csv has the columns split, .*; a manifest has"),
        (("320", "wide"), "m.csv:2: .*wide"),
        (("mpeg4,", ""), "m.csv:2: 11 cells in place of 12"),
    ],
)
def test_another_file_is_refused(tmp_path, change, message):
    manifest.write(tmp_path / "m.csv", ROWS[:1])
    text = (tmp_path / "m.csv").read_text()
    (tmp_path / "m.csv").write_text(text.replace(*change))
    with pytest.raises(manifest.BadManifest, match=message):
        list(manifest.read(tmp_path / "m.csv"))
