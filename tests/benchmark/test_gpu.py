"""`benchmark gpu`: its plan, and the command for real."""

import json

import pytest

from sparse_tube_vit.benchmark import __main__ as command
from sparse_tube_vit.benchmark import gpu
from tests.benchmark.jobs import TINY, parse


def test_the_most_important_jobs_come_first(tmp_path):
    args = parse(tmp_path)
    jobs = gpu.plan(args)
    names = [job.name for job in jobs]
    assert len({*names}) == len(names) == 2 * (8 + 4) + 6
    assert names[:9] == [
        "ours_B_32x224x224_video_train",
        "pytorch_B_32x224x224_video_train",
        "ours_L_32x224x224_video_train",
        "pytorch_L_32x224x224_video_train",
        "ours_B_64x224x224_joint_train",
        "pytorch_B_64x224x224_joint_train",
        "ours_B_32x224x224_video_forward",
        "pytorch_B_32x224x224_video_forward",
        "videomae_B_16x224x224_video_train",
    ]
    args = parse(tmp_path, *TINY, "--implementations", "pytorch", "--streams", "joint")
    assert [job.name for job in gpu.plan(args)] == [
        "pytorch_Ti_20x32x32_joint_train",
        "pytorch_Ti_20x32x32_video_forward",
    ]


@pytest.mark.parametrize("frames", [["16"], ["16", "32"], ["32", "16"]])
def test_others_are_measured_once_at_16_frames_and_at_ours(tmp_path, frames):
    jobs = gpu.plan(parse(tmp_path, "--frames", *frames))
    names = [job.name for job in jobs if job.implementation in ("videomae", "timm")]
    first = int(frames[0])
    expected = [f"videomae_B_16x224x224_video_{d}" for d in ("train", "forward")]
    expected += [f"timm_B_{first}x224x224_video_{d}" for d in ("train", "forward")]
    if first != 16:
        expected += [
            f"videomae_B_{first}x224x224_video_{d}" for d in ("train", "forward")
        ]
    assert sorted(names) == sorted(expected)


@pytest.mark.slow
def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")  # that of the tests
    folders = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    only = ["--implementations", "ours", "--streams", "video", "--rounds", "1"]
    options = ["--largest", "3", "--scan", "--dtype", "float32", "--seconds", "0.1"]
    command.main(["gpu", *TINY, *folders, *only, *options])
    printed = capsys.readouterr().out
    assert "tells nothing of a GPU" in printed
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["direction"], row["batch"]) for row in stored["rows"]] == [
        *(("train", 2), ("train", 3), ("forward", 2), ("forward", 3))
    ]
    assert (tmp_path / "out" / "table.md").read_text() in printed
    assert [*(tmp_path / "cache" / "jax").iterdir()]
