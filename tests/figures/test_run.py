"""The command line draws a run: all that there is, or a kind."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sparse_tube_vit.figures.__main__ import main


def drawn(capsys, *arguments):
    capsys.readouterr()
    main([*map(str, arguments)])
    return capsys.readouterr().out.split()


def test_all_of_a_run(finished, capsys):
    workdir, _ = finished
    names = [
        "training_curves.png",
        "throughput.png",
        "tubes.png",
        "tubes_animated.gif",
        "kernels_0_4x4x4.png",
        "kernels_1_1x8x8.png",
        "positions.png",
        "attention_pooling.png",
        "attention_rollout.png",
        "image_step6_confusion.png",
        "video_step6_2x3_confusion.png",
    ]
    paths = [workdir / "figures" / name for name in names]
    assert drawn(capsys, "run", "--workdir", workdir) == [str(path) for path in paths]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == path.suffix[1:].upper()


def test_tubes_of_a_config_on_a_file(real_data, tmp_path, capsys):
    config = "configs/moving_shapes.py"
    file = sorted((real_data / "ucf10").rglob("*.mp4"))[0]
    options = ("--config", config, "--clip", file, "--out", tmp_path)
    assert drawn(capsys, "tubes", *options) == [
        str(tmp_path / "tubes.png"),
        str(tmp_path / "tubes_animated.gif"),
    ]
    with Image.open(tmp_path / "tubes_animated.gif") as gif:
        assert gif.n_frames == 16


def test_tokens_need_several_and_the_last_step_counts(finished, tmp_path, capsys):
    workdir, _ = finished
    with pytest.raises(SystemExit):
        main(["tokens", "--workdir", str(workdir)])
    assert "NothingToDraw: " in (said := capsys.readouterr().err)
    assert "evaluate one with --stride_scale 0.5" in said and len(said.split("\n")) == 2
    shutil.copytree(workdir / "evaluations", tmp_path / "evaluations")
    path = tmp_path / "evaluations" / "video_step6_2x3.json"
    result = json.loads(path.read_text())
    (path.parent / "video_step5_2x3.json").write_text(json.dumps(result | {"step": 5}))
    dense = result | {"tokens": 99, "stride_scale": 0.5}
    (path.parent / "video_step6_2x3_99tokens.json").write_text(json.dumps(dense))
    (path,) = drawn(capsys, "tokens", "--workdir", tmp_path)
    assert path == str(tmp_path / "figures" / "tokens.png")
    paths = drawn(capsys, "confusion", "--workdir", tmp_path)
    assert not any("step5" in path for path in paths) and len(paths) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--workdir", "none"], "NoCheckpoint: "),
        (
            ["run", "--workdir", "x", "--config.seed=1"],
            "unrecognized arguments: --conf",
        ),
        (
            ["tubes", "--out", "x"],
            "one of the arguments --config --workdir is required",
        ),
        (["tubes", "--config", "configs/ucf101.py"], "--config needs --out"),
        (
            ["tubes", "--config", "configs/ucf101.py", "--out", "x", "--clip", "none"],
            "UnreadableFile: none: ",
        ),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, capsys, arguments, message):
    configs = Path("configs").absolute()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(configs)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code not in (None, 0)
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]
