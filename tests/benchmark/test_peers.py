"""`benchmark peers`: what is measured, the table, and the command for real."""

import argparse
import json

import pytest
from PIL import Image

from sparse_tube_vit.benchmark import __main__ as command
from sparse_tube_vit.benchmark import peers


def parse(*arguments):
    parser = argparse.ArgumentParser()
    peers.add_arguments(parser)
    return parser.parse_args(arguments)


def test_all_are_measured_alike_then_at_their_own_frames_then_growth():
    jobs = peers.plan(parse("--growth", "16", "32", "128"))
    measured = [(job.implementation, job.frames, job.direction) for job in jobs]
    assert len(measured) == len({*measured}) == 2 * 6 + 2 * 2 + 2 * 2
    assert {job[:2] for job in measured[:12]} == {(n, 32) for n in peers.OWN_FRAMES}
    assert measured[12:14] == [
        ("videomae", 16, "forward"),
        ("timesformer", 8, "forward"),
    ]
    assert measured[-1] == ("dense", 128, "forward")
    assert {(job.largest, job.small, job.compiled) for job in jobs} == {(0, 1, False)}


def row(implementation, frames, seconds, direction="forward"):
    return {
        "implementation": implementation,
        "direction": direction,
        "clip": [frames, 224, 224],
        "batch": 2,
        "step_seconds": seconds,
        "flops": 4e9,
        "flops_per_second": 4e9 / seconds,
        "memory_bytes": 2**30,
    }


def test_rows_are_compared_with_ours_of_the_same_pass():
    rows = [
        row("ours", 32, 1.0),
        row("vivit", 32, 12.0),
        row("ours", 64, 3.0),
        row("dense", 64, 60.0),
        row("timesformer", 8, 4.0),
        row("vivit", 32, 36.0, "train"),
    ]
    lines = peers.compared(rows).splitlines()[2:]
    assert lines[1] == "| forward | vivit | 32x224x224 | 6000 | 2 | 0 | 12.0 |"
    times = [line.split("|")[-2].strip() for line in lines]
    assert times == ["1.0", "12.0", "1.0", "20.0", "4.0", ""]


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """Ours alone: other implementations need PyTorch."""
    tiny = "peers --variant Ti --size 32 --frames 20 --growth 20 24 --seconds 0.1"
    options = [*tiny.split(), "--implementations", "ours", "dense", "--rounds", "1"]
    folders = ["--out", str(tmp_path), "--cache", str(tmp_path / "cache")]
    command.main([*options, *folders])
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    stored = json.loads((tmp_path / "results.json").read_text())
    assert not stored["failed"] and len(stored["rows"]) == 2 * 2 + 2 * 2 + 2
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.width > 500
