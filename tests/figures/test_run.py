"""The command line draws a run: all that there is, or a kind."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sparse_tube_vit.checkpoints import release
from sparse_tube_vit.checkpoints.stored import DEMO
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.figures.__main__ import main
from sparse_tube_vit.figures.run import KINDS, Run
from tests.checkpoints.image_vits.models import GOLDEN
from tests.datasets.builders.official import encode


def drawn(capsys, *arguments):
    capsys.readouterr()
    main([*map(str, arguments)])
    return capsys.readouterr().out.split()


def test_all_of_a_run(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
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
    name = f"{file.parent.name}_{file.stem}"
    assert drawn(capsys, "tubes", *options) == [
        str(tmp_path / f"tubes_{name}.png"),
        str(tmp_path / f"tubes_animated_{name}.gif"),
    ]
    with Image.open(tmp_path / f"tubes_animated_{name}.gif") as gif:
        assert gif.n_frames == 16


def test_a_clip_has_pictures_of_its_own_that_name_it(finished, tmp_path, capsys):
    workdir, _ = finished
    for name, brightness in (("up/1.mp4", 20), ("down/1.mp4", 200)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(encode(brightness))
    paths = [
        path
        for name in ("up/1.mp4", "down/1.mp4")
        for path in drawn(
            *(capsys, "attention", "--workdir", workdir, "--clip", tmp_path / name)
        )
    ]
    assert [path.rpartition("/")[2] for path in paths] == [
        f"attention_{kind}_{clip}_1.png"
        for clip in ("up", "down")
        for kind in ("pooling", "rollout")
    ]
    run = Run(workdir, str(tmp_path / "up/1.mp4"))
    ((best, probability),) = run.trained.predict(run.clip.view, top=1)
    title = f"Attention rollout: up/1.mp4, predicted {best} ({probability:.0%})"
    for picture, kind in zip(KINDS["attention"](run), ("of", "rollout"), strict=True):
        assert picture.caption.startswith(f"Attention {kind}")
    assert " ".join(picture.drawn.get_suptitle().split()) == title


def test_an_example_is_named_with_its_label(finished):
    run = Run(finished[0])
    picture, _ = KINDS["attention"](run)
    split = reading.open_split("moving_shapes/videos", "test", run.config.data_dir)
    label = split.class_names[split[0]["label"]]
    said = " ".join(picture.drawn.get_suptitle().split())
    named = f"Attention of the pooling: {split[0]['id']}, label {label}, predicted "
    assert said.startswith(named) and run.clip.suffix == ""


@pytest.mark.parametrize("model", ["release", "run/checkpoints/6"])
def test_nothing_is_written_into_a_model_alone(finished, tmp_path, capsys, model):
    (tmp_path / "run").symlink_to(finished[0])
    release.release(tmp_path / "run", tmp_path / "release")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit):
        main(["kernels", "--workdir", str(tmp_path / model)])
    assert "NoDirectory: " in (said := capsys.readouterr().err)
    assert said.endswith("--out where it goes.\n")
    assert sorted(tmp_path.rglob("*")) == before
    options = ("--workdir", tmp_path / model, "--out", tmp_path / "new")
    paths = drawn(capsys, "kernels", *options)
    assert len(paths) == 2 and all(Path(path).exists() for path in paths)


def test_attention_of_an_image_vit_is_drawn_on_a_file(tmp_path, capsys):
    model = str(GOLDEN / "hugging_face_dino")
    options = ("--model", model, "--out", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["attention", *options])
    assert "NothingToDraw: " in (said := capsys.readouterr().err)
    assert said.endswith("Give --clip FILE.\n")
    clip = sorted(DEMO.glob("*.mp4"))[0]
    paths = drawn(capsys, "attention", *options, "--clip", str(clip))
    assert len(paths) == 2


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
            "arguments --config --model/--workdir is required",
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
