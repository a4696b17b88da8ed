"""Fine-tuning on own clips: what is open is filled in, and what cannot work is said."""

import json
import logging
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import sparse_tube_vit as stv
from configs import finetune
from sparse_tube_vit.checkpoints import pretrained, release
from sparse_tube_vit.checkpoints.image_vits import UnreadableWeights
from sparse_tube_vit.checkpoints.run import OtherRun
from sparse_tube_vit.checkpoints.step import NoCheckpoint
from sparse_tube_vit.checkpoints.stored import locate
from sparse_tube_vit.config import (
    InvalidConfig,
    default_config,
    from_json,
    stream,
    validate,
)
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders import folders
from sparse_tube_vit.errors import IndivisibleBatch, TubeViTError
from sparse_tube_vit.models.tubes import ClipTooSmall
from sparse_tube_vit.models.tubevit import make_model, param_shapes
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.train import train
from sparse_tube_vit.training import finetuning, folder_dataset, forecast, recipe
from sparse_tube_vit.training.description import describe
from sparse_tube_vit.training.freezing import check_new, frozen_parts
from sparse_tube_vit.training.inspection import examples_of_step
from sparse_tube_vit.training.optimizer import rate_scale
from tests.datasets.builders import official
from tests.saved import save_model
from tests.tiny import tiny_config
from tests.training.clips import CLIPS, config_of

IMAGE_VIT = Path(__file__).parents[1] / "golden" / "timm.safetensors"  # 2 blocks


def test_everything_open_is_filled_in(clips, finished, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sparse_tube_vit")
    workdir, _ = finished
    theirs = locate(workdir, 6).read_description()["config"]
    given = config_of(clips, tmp_path, workdir, "--config.clip.fps=5")
    config = finetuning.complete(given, tmp_path / "run")
    assert given.clip.frames is None  # it is not changed
    assert config.clip.to_dict() == theirs["clip"] | {"fps": 5.0}
    for key, value in config.model.items():
        assert json.loads(json.dumps(value)) == theirs["model"][key], key
    o = config.optimizer
    assert (config.total_steps, o.warmup_steps, o.head_steps) == (100, 10, 0)
    assert config.log_every_steps == 5
    source, views = config.streams.clips, config.evaluations.clips
    assert source.dataset == views.dataset
    splits = [
        reading.open_split(source.dataset, s, tmp_path)
        for s in (source.split, views.split)
    ]
    assert splits[0].class_names == ("Kür & pas", "walk the dog")
    ids = [{example["id"] for example in split} for split in splits]
    assert sorted(ids[0] | ids[1]) == sorted(CLIPS) and not ids[0] & ids[1]
    for said in ("4 frames at 5 fps", "20% of each class", "test:", "100 steps of 16"):
        assert said in caplog.text


def from_image_vit(*arguments, train=""):
    """The config of a run that starts from an image ViT, without its data."""
    config = config_of("", "data", IMAGE_VIT, *arguments, train=train)
    config = finetuning.complete(config, data=False)
    return config


def report_of(config):
    """What is taken from the weights of a completed config."""
    model = make_model(config, {"clips": 2})
    shapes = param_shapes(model)
    names = {"clips": ("a", "b")}
    return pretrained.initial_params(config, model, shapes, names)[1]


def test_an_image_vit_gives_its_sizes_and_a_recipe_the_rest(caplog):
    caplog.set_level(logging.INFO, "sparse_tube_vit")
    config = from_image_vit("--config.optimizer.layer_decay=0.9")
    model = config.model
    assert (model.depth, model.width, model.mlp_dim, model.gelu) == (2, 24, 48, "erf")
    assert config.clip.to_dict() == {"frames": 16, "fps": 8.0, "size": 112}
    assert [tube["kernel"] for tube in model.tubes] == [
        (8, 8, 8),
        (16, 4, 4),
        (4, 12, 12),
        (1, 16, 16),
    ]
    assert (model.positions, model.position_gain) == ("learned", 0.0)
    assert (config.init.positions, config.init.inflate) == ("keep", "central_frame")
    o = config.optimizer
    rates = (o.learning_rate, o.trunk_rate, o.layer_decay, o.video_tubes_rate)
    assert rates == (1e-3, 0.3, 0.9, 0.05)
    assert o.trained_layers is None and config.data.epochs == 10
    assert "  --config.clip.size=112\n" in caplog.text
    assert "--config.optimizer.layer_decay" not in caplog.text  # it was set


@pytest.mark.parametrize(
    "total, warmup, heads", [(330, 33, 110), (150, 15, 75), (2, 1, 0), (100, 98, 1)]
)
def test_a_fresh_head_of_an_image_vit_trains_first(total, warmup, heads):
    assert from_image_vit().optimizer.head_steps is None
    assert recipe.head_steps(total, warmup) == heads


def test_an_image_vit_of_the_hub_gives_its_options(caplog):
    caplog.set_level(logging.INFO, "sparse_tube_vit")
    weights = Path(__file__).parents[1] / "golden/image_vits/hugging_face_clip"
    arguments = "--config.model.tubes=image", "--config.model.norm_epsilon=0.5"
    config = config_of("", "data", weights, *arguments)
    config = finetuning.complete(config, data=False)
    model = {"depth": 2, "width": 16, "mlp_dim": 32, "heads": 2, "pre_norm": True}
    model |= {"gelu": "quick", "pooling": "attention", "registers": 0}
    model |= {"tubes": "image", "norm_epsilon": 0.5, "positions": "learned"}
    for key, value in model.items():
        assert config.model[key] == value, key
    assert config.clip.frames == 16
    assert "2 layers of width 16, as in " in caplog.text


def test_a_normalization_that_is_set_goes_before_a_files_wrong_one(tmp_path):
    weights = tmp_path / "vit.safetensors"
    shutil.copy(IMAGE_VIT, weights)
    wrong = {"image_mean": [0.5] * 3, "image_std": [0] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(wrong))
    override = f"--config.init.weights={weights}"
    with pytest.raises(UnreadableWeights, match="choose a normalization: half"):
        from_image_vit(override)
    assert from_image_vit(override, "--config.init.normalization=half").model.depth == 2


def test_gated_mlps_of_an_image_vit_are_taken():
    weights = Path(__file__).parents[1] / "golden/image_vits/timm_dinov2_gated"
    config = finetuning.complete(config_of("", "data", weights), data=False)
    assert config.model.gated_mlp and config.model.mlp_dim == 16


def test_without_a_vits_positions_fixed_ones_are_small():
    dropped = from_image_vit("--config.init.positions=drop")
    assert (dropped.model.positions, dropped.model.position_gain) == ("fixed", 0.02)
    assert dropped.init.positions == "drop"
    from_image_vit("--config.init.positions=drop", train="head_only")


def test_patches_of_several_frames_train_as_the_vits_layer(tmp_path):
    weights = Path(__file__).parents[1] / "golden/image_vits/hugging_face_videomae"

    def completed(*arguments):
        config = config_of("", "data", weights, *arguments)
        return finetuning.complete(config, data=False)

    alone = completed()
    *_, patches = make_tubes(alone.model.tubes)
    assert patches.kernel[0] == 2
    index = len(alone.model.tubes) - 1
    depth = alone.model.depth
    first = alone.optimizer.trunk_rate * alone.optimizer.layer_decay ** (depth + 1)
    assert rate_scale(alone, f"stem/tube_{index}/kernel") == pytest.approx(first)
    jointly = completed(f"--config.data.images={tmp_path}")
    *_, before, images = make_tubes(jointly.model.tubes)
    assert before == patches and images.kernel == (1, *patches.kernel[1:])
    assert images.reads_images
    # Its kernel is the patches', summed over their frames.
    report = report_of(jointly)
    (how,) = [x for x in report.resized if f"tube_{index + 1}/kernel" in x]
    assert "summed over 2 frames" in report.resized[how]


@pytest.mark.parametrize(
    "argument, train, error",
    [
        ("--config.optimizer.trained_layers=5", "", "trained_layers is 5"),
        ("--config.data.images=nowhere", "", "nowhere, which is no folder"),
    ],
)
def test_what_cannot_be_is_said_before_a_folder_is_prepared(
    clips, tmp_path, argument, train, error
):
    (tmp_path / "data").mkdir()
    config = config_of(clips, tmp_path / "data", IMAGE_VIT, argument, train=train)
    with pytest.raises(TubeViTError, match=error):
        finetuning.complete(config)
    assert not [*(tmp_path / "data").iterdir()]


@pytest.mark.parametrize(
    "argument, error",
    [
        ("--config.clip.size=1", ClipTooSmall),
        ("--config.streams.clips.batch_size=3", IndivisibleBatch),
    ],
)
def test_what_does_not_fit_ends_training_before_a_folder_is_prepared(
    clips, finished, tmp_path, argument, error
):
    assert 3 % jax.device_count()
    config = config_of(clips, tmp_path / "data", finished[0], argument)
    with pytest.raises(error):
        train(config, tmp_path / "run")
    assert not (tmp_path / "data").exists()


def test_a_prepared_data_set_trains_as_many_epochs_as_its_folder(
    clips, finished, tmp_path
):
    data = folder_dataset.prepare_folder(config_of(clips, tmp_path)).dataset
    keys = (f"--config.{x}.clips.dataset={data}" for x in ("streams", "evaluations"))
    given = tmp_path, finished[0], "--config.data.epochs=400"
    of_folder = finetuning.complete(config_of(clips, *given))
    prepared = finetuning.complete(config_of("", *given, *keys))
    assert of_folder.total_steps > finetuning.LEAST_STEPS
    assert prepared.total_steps == of_folder.total_steps
    assert prepared.optimizer.warmup_steps == of_folder.optimizer.warmup_steps


def test_steps_that_were_forgotten_are_asked_for(tmp_path):
    for name in ("video", finetuning.IMAGES):
        config = default_config()
        source = {"kind": "image", "dataset": "nowhere", "head": "h"}
        config.streams[name] = stream(batch_size=1, **source)
        with pytest.raises(InvalidConfig, match="total_steps is None"):
            finetuning.complete(config, tmp_path)


def test_steps_are_of_the_folder_where_other_streams_come_first(
    clips, finished, tmp_path
):
    data = folder_dataset.prepare_folder(config_of(clips, tmp_path)).dataset
    config = config_of(clips, tmp_path, finished[0], "--config.data.epochs=400")
    expected = finetuning.complete(config).total_steps
    other = shutil.copytree(tmp_path / data, tmp_path / "video_folder" / "other")
    config.streams.a = stream(
        kind="video",
        dataset=f"video_folder/{other.name}",
        split="test",
        head="a",
        batch_size=1,
    )
    assert finetuning.complete(config).total_steps == expected


def test_logged_defaults_are_read_as_they_stand(caplog):
    caplog.set_level(logging.INFO, "sparse_tube_vit")
    config = from_image_vit()
    (text,) = [m for m in caplog.messages if m.startswith("Defaults for fine-tuning")]
    arguments = shlex.split(text.partition(":")[2])
    assert len(arguments) > 8 and all(x.startswith("--config.") for x in arguments)
    again = from_image_vit(*arguments)
    assert again.to_dict() == config.to_dict()


def test_what_is_set_is_heeded_by_the_recipe():
    fixed = from_image_vit("--config.model.positions=fixed")
    assert fixed.model.position_gain is None and fixed.init.positions == "drop"
    fixed = from_image_vit(
        "--config.model.positions=fixed", "--config.model.position_gain=0.02"
    )
    assert fixed.model.position_gain == 0.02
    tubes = from_image_vit("--config.model.tubes=main", "--config.clip.frames=32")
    assert (tubes.model.tubes, tubes.init.inflate) == ("main", "none")
    assert tubes.optimizer.video_tubes_rate == 0.3  # they are drawn at random
    assert (
        from_image_vit("--config.init.inflate=none").optimizer.video_tubes_rate == 0.3
    )
    short = from_image_vit("--config.clip.frames=6").model.tubes
    assert [tube["kernel"][0] for tube in short] == [6, 6, 4, 1]


@pytest.mark.parametrize(
    "train, trained, trunk", [("head_only", 0, 1.0), ("last=1", 1, 0.3)]
)
def test_what_is_frozen_comes_from_the_image_vit(train, trained, trunk):
    config = from_image_vit("--config.model.heads=2", train=train)
    assert config.optimizer.trained_layers == trained
    assert config.optimizer.head_steps == 0
    assert config.optimizer.learning_rate == 1e-3
    assert config.optimizer.trunk_rate == trunk
    (tube,) = config.model.tubes
    assert tube == {"kernel": (1, 16, 16), "stride": (4, 16, 16)}
    assert config.clip.size == 160
    report = report_of(config)
    check_new(report.new, config)
    assert {name.partition("/")[0] for name in report.new} == {"pooling", "head_clips"}


@pytest.mark.parametrize("arguments", [(), ("--config.clip.size=96",)])
@pytest.mark.parametrize("train", ["", "last=1"])
def test_clips_and_tubes_of_other_trained_layers(train, arguments):
    given = config_of("", "data", IMAGE_VIT, *arguments, train=train)
    config = finetuning.complete(given, data=False)
    option = "optimizer.trained_layers=0 (pooling and heads alone)"
    other = finetuning.faster_configs(config, given)[option]
    expected = from_image_vit(*arguments, train="head_only")
    assert other.clip.to_dict() == expected.clip.to_dict()
    assert other.model.tubes == expected.model.tubes
    assert other.optimizer.trained_layers == expected.optimizer.trained_layers == 0


def test_patches_are_of_the_fewest_frames():
    tubes = [(8, 8, 8), (4, 12, 12), (1, 8, 8), (1, 14, 14), (2, 16, 16)]
    tubes = make_tubes([{"kernel": k, "stride": k} for k in tubes])
    assert recipe.patch_of(tubes) == (1, 14, 14)
    assert recipe.patch_of(tubes[:2]) == (4, 12, 12)
    assert recipe.patch_of(tubes[:1] * 2) == (8, 8, 8)


def test_arguments_of_the_config_file():
    given = {"": None, "all": None, "last=4": 4, "head_only": 0}
    for argument, trained in given.items():
        config = config_of("", "data", train=argument)
        assert config.optimizer.trained_layers == trained
    for argument, message in (
        ("last=0", "last=0: give a number of blocks, as last=4"),
        ("last=4,head_only", "Give one of all, last=N and head_only"),
        ("first=2", "takes no argument 'first=2'"),
    ):
        with pytest.raises(InvalidConfig, match=message):
            finetune.get_config(argument)
    with pytest.raises(InvalidConfig, match="trained_layers is 3: the model has 2"):
        from_image_vit(train="last=3")


def test_trained_layers_of_a_model(finished, tmp_path):
    given = config_of("", tmp_path, finished[0], train="head_only")
    config = finetuning.complete(given, data=False)
    assert (config.optimizer.trained_layers, config.optimizer.layer_decay) == (0, 1.0)
    assert config.optimizer.learning_rate == 3e-3
    assert (config.init.positions, config.init.inflate) == ("drop", "none")


@pytest.mark.parametrize("size, how", [(16, "loaded"), (32, "resized")])
def test_learned_positions_of_a_model_are_kept(tmp_path, size, how):
    theirs = tiny_config("nowhere")
    theirs.model.positions = "learned"
    run = save_model(
        tmp_path / "run", theirs, {"motions": ("a", "b"), "shapes": ("c",)}
    )
    given = config_of("", tmp_path, run, f"--config.clip.size={size}", train="last=1")
    config = finetuning.complete(given, data=False)
    assert config.init.positions == "keep"
    report = report_of(config)
    assert {f"positions/tube_{i}" for i in (0, 1)} <= getattr(report, how).keys()
    check_new(report.new, config)
    given.model.positions = "fixed"
    assert finetuning.complete(given, data=False).init.positions == "drop"


@pytest.mark.parametrize("train, gate", [("head_only", True), ("last=1", False)])
def test_a_gate_that_is_below_what_trains_is_frozen(tmp_path, train, gate):
    theirs = tiny_config(tmp_path)
    theirs.model.update(depth=2, gate_after=1)
    names = {"motions": ("a", "b"), "shapes": ("c",)}
    run = save_model(tmp_path / "run", theirs, names)
    given = config_of("", tmp_path, run, train=train)
    config = finetuning.complete(given, data=False)
    assert config.model.gate_after == 1
    assert ("encoder/gate" in frozen_parts(config)) == gate


def test_the_head_of_videomae_trains_alone(tmp_path):
    weights = IMAGE_VIT.parent / "image_vits" / "hugging_face_videomae"
    given = config_of("", tmp_path, weights, train="head_only")
    config = finetuning.complete(given, data=False)
    report = report_of(config)
    check_new(report.new, config)


def write_images(folder, *classes):
    for i, name in enumerate(f"{c}/{n}.png" for c in classes for n in range(4)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(official.encode_image(10 * i))


def test_images_of_other_classes_get_a_head_of_their_own(clips, finished, tmp_path):
    write_images(tmp_path / "images", "cat", "dog")
    images = f"--config.data.images={tmp_path / 'images'}"
    given = config_of(clips, tmp_path, finished[0], images)
    config = finetuning.complete(given, tmp_path / "run")
    assert {k: s.kind for k, s in config.streams.items()} == {
        "clips": "video",
        "images": "image",
    }
    stream, views = config.streams.images, config.evaluations.images
    assert (stream.head, views.head, views.split) == ("images", "images", "test")
    assert stream.dataset == views.dataset != config.streams.clips.dataset
    assert config.total_steps == 100  # that of the clips
    given.data.images = str(clips)
    before = sorted(tmp_path.glob("*_folder/*"))
    with pytest.raises(folders.EmptyClassFolder, match="holds no image .*not a known"):
        finetuning.complete(given, tmp_path / "run")
    assert sorted(tmp_path.glob("*_folder/*")) == before
    given.data.images = ""
    assert [*finetuning.complete(given, tmp_path / "run").streams] == ["clips"]


def test_images_of_some_of_the_classes_share_their_head(
    clips, finished, tmp_path, caplog
):
    def completed(*classes):
        folder = tmp_path / "-".join(["images", *classes])
        write_images(folder, *classes)
        given = config_of(
            clips, tmp_path, finished[0], f"--config.data.images={folder}"
        )
        config = finetuning.complete(given, tmp_path / "run")
        dataset, stream = config.streams.images.dataset, config.streams.images
        split = reading.open_split(dataset, "train", tmp_path)
        return stream.head, split.class_names, {int(x["label"]) for x in split}

    both = "Kür & pas", "walk the dog"
    assert completed("walk the dog") == ("clips", both, {1})
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert completed("cat", "walk the dog")[:2] == ("images", ("cat", "walk the dog"))
    assert "named as those of config.data.folder: 'cat' (not there)" in caplog.text
    assert completed("Walk_the_dog", "cat")[0] == "images"
    assert "'Walk_the_dog' (there 'walk the dog'), 'cat' (not there)" in caplog.text


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("Jumping Jack", "jumping_jack", True),
        ("JumpingJack", "jumping-jack", True),
        ("Kür", "ku\u0308r", True),  # as macOS writes it
        ("c++", "c#", False),
        ("A+", "A-", False),
        ("level 1-1", "level 11", False),
    ],
)
def test_names_that_hardly_differ(a, b, same):
    assert (folder_dataset._plain(a) == folder_dataset._plain(b)) == same


def test_copies_and_names_that_hardly_differ_are_warned_of(clips, tmp_path, caplog):
    def complete(folder):
        caplog.clear()
        finetuning.complete(config_of(folder, tmp_path, IMAGE_VIT), tmp_path / "run")
        return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    assert not complete(clips)
    alike = tmp_path / "alike"
    shutil.copytree(clips, alike)
    (alike / "Kür & pas").rename(alike / "Walk-the-Dog")
    (warning,) = complete(alike)
    assert "hardly differ: 'Walk-the-Dog' and 'walk the dog'. If" in warning
    twice = tmp_path / "twice"
    for split in ("train", "test"):
        shutil.copytree(clips, twice / split)
    (warning,) = complete(twice)
    assert f"in several splits: accuracies are too good ({len(CLIPS)} of" in warning
    (name, other), both = sorted(clips.iterdir()), tmp_path / "both"
    shutil.copytree(clips, both)
    copied = sorted(name.iterdir())[0]
    shutil.copy(copied, both / other.name / "copy.mp4")
    (warning,) = complete(both)
    ids = f"{name.name}/{copied.name} and {other.name}/copy.mp4"
    assert f"the same files are in several classes (1 of them, as {ids})" in warning


def test_an_image_vit_is_trained_jointly_with_images_of_the_same_classes(
    clips, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "sparse_tube_vit")
    monkeypatch.setattr(forecast, "STEPS", 1)
    write_images(tmp_path / "images", "Kür & pas", "walk the dog")
    config = config_of(
        clips,
        tmp_path / "data",
        IMAGE_VIT,
        f"--config.data.images={tmp_path / 'images'}",
        "--config.clip.size=48",
        "--config.model.heads=2",
        "--config.total_steps=4",
        "--config.streams.clips.batch_size=8",
        "--config.streams.images.batch_size=8",
        "--config.evaluations.images.batch_size=8",
        "--config.evaluations.clips.temporal_views=1",
    )
    state = train(config, tmp_path / "run")
    assert [k for k in state.params if k.startswith("head_")] == ["head_clips"]
    positions = state.params["positions"]
    assert positions["gain"] != 0 and positions["tube_3"].shape == (4, 3, 3, 24)
    for said in (
        "stem/tube_0  kernel (8, 8, 8, 3, 24): from 16x16, central_frame",
        "resized  positions/tube_3  (4, 3, 3, 24): from 3x3",
        "Peak learning rates by layer:\n  0.001    head_clips, pooling",
        "s a step this run takes about 00:0",
        "for 2 steps, 00:0",
    ):
        assert said in caplog.text, said
    names = {path.name for path in (tmp_path / "run/evaluations").glob("*.json")}
    assert names == {"clips_step4_1x3.json", "images_step4.json"}
    # To go on, the weights are not needed.
    monkeypatch.setattr(finetuning, "image_vits", None)
    again = finetuning.complete(config, tmp_path / "run")
    saved = locate(tmp_path / "run", 4).read_description()["config"]
    assert again.to_json() == json.dumps(saved)


@pytest.mark.parametrize("flip", [True, False])
def test_clips_are_mirrored_where_those_of_the_model_were(tmp_path, flip):
    theirs = tiny_config("nowhere")
    theirs.streams.video.flip, theirs.streams.image.flip = flip, not flip
    model = save_model(
        tmp_path / "model", theirs, {"motions": ("a",), "shapes": ("b",)}
    )
    official.write_clips(tmp_path / "clips", *CLIPS)

    def flips(*arguments):
        given = config_of(tmp_path / "clips", tmp_path, model, *arguments)
        return finetuning.complete(given, tmp_path / "run").streams.clips.flip

    assert flips() == flip
    assert flips(f"--config.streams.clips.flip={not flip}") != flip


def test_what_is_open_is_filled_in_to_be_looked_at(clips, tmp_path):
    theirs = tiny_config("nowhere")
    model = save_model(
        tmp_path / "model", theirs, {"motions": ("a",), "shapes": ("b",)}
    )
    text = describe(config_of("", tmp_path, model))  # no data set is needed
    assert "a clip of 4x16x16" in text
    assert "Without head_clips, whose data sets are not prepared." in text
    ((name, batch),) = examples_of_step(config_of(clips, tmp_path, model), 2)
    assert name == "clips" and len(batch) == 16
    assert {example.video.shape for example in batch} == {(4, 16, 16, 3)}
    assert any("walk the dog" in example.target for example in batch)


@pytest.mark.parametrize(
    "total, logged, saved", [(7, 1, 2), (104, 5, 21), (660, 33, 132), (9000, 50, 1000)]
)
def test_curves_have_twenty_points_and_runs_five_checkpoints(
    finished, tmp_path, total, logged, saved
):
    config = config_of("", tmp_path, finished[0], f"--config.total_steps={total}")
    config.streams.clips.dataset = config.evaluations.clips.dataset = "clips"
    found = finetuning.complete(config, tmp_path)
    assert (found.log_every_steps, found.checkpoint.every_steps) == (logged, saved)
    config.log_every_steps = config.checkpoint.every_steps = 3
    found = finetuning.complete(config, tmp_path)
    assert (found.log_every_steps, found.checkpoint.every_steps) == (3, 3)


def test_a_folder_of_images(tmp_path):
    for i, name in enumerate(("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(official.encode_image(10 * i))
    given = config_of(tmp_path / "images", tmp_path, IMAGE_VIT)
    config = finetuning.complete(given, tmp_path / "run")
    for source in (config.streams.clips, config.evaluations.clips):
        assert source.kind == "image"
        assert source.dataset.startswith("image_folder/images-")
    validate(from_json(json.loads(config.to_json())))


def test_what_is_open_needs_a_run_or_an_image_vit(tmp_path):
    with pytest.raises(UnreadableWeights, match="vit.npz cannot be read"):
        finetuning.complete(config_of("", tmp_path, "vit.npz"), tmp_path)
    config = config_of("", tmp_path)
    advice = "^Name a run, .* with --config.init.weights, .* are open: clip.fps, "
    with pytest.raises(InvalidConfig, match=advice):
        finetuning.complete(config, tmp_path)
    with pytest.raises(InvalidConfig, match="keys are open: clip.fps, .*model.width"):
        validate(config)


def test_what_is_open_needs_clips(finished, tmp_path):
    with pytest.raises(
        InvalidConfig, match="clips has no data set: give --config.data"
    ):
        finetuning.complete(config_of("", tmp_path, finished[0]), tmp_path)


def test_a_folder_that_nothing_reads_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    config.data.folder = str(tmp_path / "clips")
    with pytest.raises(InvalidConfig, match="clips', but all streams and evaluations"):
        finetuning.complete(config, tmp_path / "run")


@pytest.mark.parametrize(
    "key, value",
    [
        ("streams.clips.batch_size", 0),
        ("loader.workers", -1),
        ("data.test_share", 2.0),
        ("data.epochs", 0),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_prepared(tmp_path, key, value):
    config = config_of(tmp_path / "clips", tmp_path, "", f"--config.{key}={value}")
    with pytest.raises(InvalidConfig, match=f"{key} is {value!r}: it must be"):
        finetuning.complete(config, tmp_path / "run")


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(NoCheckpoint, match="nowhere is no directory"):
        finetuning.complete(config_of("", tmp_path, "nowhere"), tmp_path)


def test_heads_that_are_not_there_cannot_be_kept(finished, tmp_path):
    keep = "--config.init.keep_heads=('motions', 'smells')"
    config = config_of("", tmp_path, finished[0], keep)
    with pytest.raises(InvalidConfig, match="has smells, but the heads of"):
        finetuning.kept_heads(config, tmp_path)


def test_fine_tuned_with_another_head_kept(clips, finished, tmp_path):
    trained, theirs = finished
    (model := tmp_path / "model").symlink_to(trained)
    arguments = (
        "--config.init.keep_heads=('motions',)",
        "--config.total_steps=2",
        "--config.optimizer.warmup_steps=1",
        "--config.evaluations.clips.batch_size=8",
    )
    workdir = tmp_path / "run"
    config = config_of(clips, tmp_path / "data", model, *arguments)
    state = train(config, workdir)
    assert {k for k in state.params if k.startswith("head_")} == {
        "head_clips",
        "head_motions",
    }
    kept, before = (
        x["head_motions"]["kernel"] for x in (state.eval_params, theirs.eval_params)
    )
    np.testing.assert_array_equal(kept, before)
    tubes = [x["stem"]["tube_0"]["kernel"] for x in (state.params, theirs.eval_params)]
    assert np.any(tubes[0] != tubes[1])
    run = locate(workdir, 2).read_description()
    assert run["class_names"]["clips"] == ["Kür & pas", "walk the dog"]
    assert len(run["class_names"]["motions"]) == 24
    names = {path.name for path in (workdir / "evaluations").iterdir()}
    assert names == {"clips_step2_4x3.json", "clips_step2_4x3_confusion.png"}
    measured = json.loads((workdir / "evaluations/clips_step2_4x3.json").read_text())
    card = (workdir / "release/README.md").read_text()
    assert f"Top-1 {measured['top1']:.1%}" in card and f"from `{model}`" in card
    loaded = stv.load(workdir / "release")
    said = dict(loaded.predict(clips / CLIPS[0]))
    assert set(said) == {"Kür & pas", "walk the dog"}
    assert len(loaded.predict(clips / CLIPS[0], head="motions", top=24)) == 24
    # To go on, the model is not needed; with other clips it is another run.
    model.unlink()
    assert finetuning.complete(config, workdir).to_json() == json.dumps(run["config"])
    assert len(finetuning.kept_heads(config, workdir)["motions"]) == 24
    (clips / CLIPS[0]).write_bytes(official.encode(200))
    with pytest.raises(OtherRun, match="run began with video_folder/my_clips_2026-"):
        train(config, workdir)


@pytest.mark.slow
def test_the_command_learns_from_a_folder_and_leaves_a_release(finished, tmp_path):
    release.release(finished[0], tmp_path / "model")
    clips = tmp_path / "clips"
    for i in range(12):
        for name, brightness in (("dark", 5 * i), ("bright", 255 - 5 * i)):
            (clips / name).mkdir(parents=True, exist_ok=True)
            (clips / name / f"{i} {i}.mp4").write_bytes(official.encode(brightness))
    (clips / "dark" / "damaged.mp4").write_bytes(b"damaged")

    def run(workdir):
        command = [sys.executable, "-m", "sparse_tube_vit.train", "--config"]
        command += ["configs/finetune.py", "--workdir", tmp_path / workdir]
        command += [f"--config.data_dir={tmp_path / 'data'}"]
        command += [f"--config.data.folder={clips}"]
        command += [f"--config.init.weights={tmp_path / 'model'}"]
        return subprocess.run(command, capture_output=True, text=True)

    done = run("run")
    assert done.returncode == 0, done.stderr
    for said in ("by the SHA-256", "dark/damaged.mp4: ", "clips: Top-1 100.0%"):
        assert said in done.stderr
    loaded = stv.load(tmp_path / "run" / "release")
    assert loaded.predict(clips / "dark" / "3 3.mp4")[0][0] == "dark"
    shutil.rmtree(clips / "dark")
    done = run("other")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("TooFewExamples: ")
    assert "Traceback" not in done.stderr and not (tmp_path / "other").exists()
