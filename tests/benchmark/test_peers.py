"""`benchmark peers`: what is measured, the table, the picture, the command for real."""

import argparse
import json
import math

import pytest
from PIL import Image

from sparse_tube_vit.benchmark import __main__ as command
from sparse_tube_vit.benchmark import measuring, peers


def parse(*arguments):
    parser = argparse.ArgumentParser()
    peers.add_arguments(parser)
    return parser.parse_args(arguments)


def test_all_are_measured_alike_then_growth_then_at_their_own_frames():
    jobs = peers.plan(parse("--growth", "20", "32", "128"))
    measured = [(job.implementation, job.frames, job.direction) for job in jobs]
    names = [*peers.MEASURED]
    assert measured == [
        *((name, 32, "forward") for name in names),
        *((name, 32, "train") for name in names if name != "dense"),
        *((name, 20, "forward") for name in ("ours", "dense")),
        *((name, 128, "forward") for name in ("ours", "dense")),
        *(("videomae", 16, "forward"), ("timesformer", 8, "forward")),
        *(("videomae", 16, "train"), ("timesformer", 8, "train")),
    ]
    assert {(job.largest, job.small, job.compiled) for job in jobs} == {(0, 1, False)}


def row(implementation, frames, seconds, direction="forward", memory=2**30):
    return {
        "implementation": implementation,
        "variant": "B",
        "direction": direction,
        "clip": [frames, 224, 224],
        "batch": 2,
        "step_seconds": seconds,
        "rounds": [
            {"least_seconds": 0.9 * seconds, "greatest_seconds": seconds},
            {"least_seconds": seconds, "greatest_seconds": 1.2 * seconds},
        ],
        "flops": 4e9,
        "flops_per_second": 4e9 / seconds,
        "memory_bytes": memory,
    }


def test_rows_are_compared_with_ours_of_the_same_pass():
    rows = [
        row("ours", 32, 1.0),
        row("vivit", 32, 12.0),
        row("ours", 64, 3.0),
        row("dense", 64, 60.0),
        row("timesformer", 8, 4.0),  # its own frames
        row("timesformer", 20, 4.0),  # nobody's
        row("vivit", 32, 36.0, "train", None),
    ]
    heads, *lines = peers.cells(rows)
    assert len({len(heads), *map(len, lines)}) == 1
    forward = ["forward", "vivit", "32x224x224", "6000", "5400 to 7200"]
    assert lines[1] == [*forward, "2", "0", "1.00", "12.0"]
    times = [line[-1] for line in lines]
    assert times == ["1.0", "12.0", "1.0", "20.0", "4.0 of 32 frames", "", ""]
    assert lines[-1][-2] == ""


def test_growth_is_drawn_of_forward_passes():
    assert peers.draw_growth([row("ours", 32, 1.0), row("vivit", 32, 1.0)]) is None
    rows = [
        row("ours", 64, 3.0, memory=3 * 2**30),
        row("ours", 32, 1.0),
        row("ours", 32, 9.0, "train"),
        row("dense", 32, 10.0, memory=None),
        row("dense", 64, 40.0),
    ]
    seconds, memory = peers.draw_growth(rows).axes
    drawn = [line.get_xydata().tolist() for line in seconds.lines]
    assert drawn == [[[32, 0.5], [64, 1.5]], [[32, 5], [64, 20]]]
    sparse, dense = (line.get_xydata().tolist() for line in memory.lines)
    assert sparse == [[32, 1], [64, 3]]
    assert math.isnan(dense[0][1]) and dense[1] == [64, 1]
    unknown = [row | {"memory_bytes": None} for row in rows]
    assert len(peers.draw_growth(unknown).axes) == 1


def test_what_was_measured_is_drawn_where_it_is_interrupted(tmp_path, monkeypatch):
    def interrupted(jobs, args, results, cells):
        results.devices["ours"] = {"kind": "cpu"}
        measured = {"which": "small", "batch": 1, "memory_bytes": 1, "notes": []}
        measured |= dict.fromkeys(("compile_seconds", "steps"), 1)
        names = ("step_seconds", "least_seconds", "greatest_seconds")
        for job in jobs:
            if job.implementation == "ours" and job.direction == "forward":
                results.add(job, measured | dict.fromkeys(names, 1.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "measure_jobs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        peers.time_peers(parse("--out", str(tmp_path)))
    assert (tmp_path / "growth.png").exists()


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """Ours alone: other implementations need PyTorch."""
    tiny = "peers --variant Ti --size 32 --frames 20 --growth 20 24 --seconds 0.1"
    options = [*tiny.split(), "--implementations", "ours", "dense", "--rounds", "1"]
    folders = ["--out", str(tmp_path), "--cache", str(tmp_path / "cache")]
    command.main([*options, *folders])
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    stored = json.loads((tmp_path / "results.json").read_text())
    assert not stored["failed"] and len(stored["rows"]) == 3 + 2 + 2
    assert stored["processor"] and stored["cores"]
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.width > 500
