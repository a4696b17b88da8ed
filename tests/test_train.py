"""Runs from their start: what is refused, kept and logged. See test_train_*.py."""

import functools
import re
import resource
import shutil
from collections import Counter

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import sparse_tube_vit
from sparse_tube_vit import train
from sparse_tube_vit.checkpoints import workdir as workdirs
from sparse_tube_vit.checkpoints.step import NoCheckpoint
from sparse_tube_vit.checkpoints.stored import locate
from sparse_tube_vit.datasets.reading import UnsupportedDataset
from sparse_tube_vit.errors import IndivisibleBatch
from sparse_tube_vit.training.reporting import PARTS, read_metrics
from tests.interrupted import PowerCut, assert_bit_identical
from tests.tiny import tiny_config


def test_the_next_batch_is_on_its_way_before_a_step_is_looked_at(
    finished, data_dir, tmp_path, monkeypatch
):
    events = []

    def told(name, function):
        return lambda *args: events.append(name) or function(*args)

    for owner, name in (
        (train.sharding, "to_devices"),
        (train.Program, "train_step"),
        (train, "check_finite"),
    ):
        monkeypatch.setattr(owner, name, told(name, getattr(owner, name)))
    config = tiny_config(data_dir)
    config.update(total_steps=3, log_every_steps=10)
    for name in tuple(config.evaluations):
        del config.evaluations[name]
    config.checkpoint.every_steps = 10
    train.train(config, tmp_path)
    ahead = ["train_step", "to_devices", "check_finite"]
    # Of the first step nothing is there to look at before the second.
    assert events[:6] == ["to_devices", *ahead[:2], *ahead]
    assert Counter(events)["to_devices"] == 3  # and none that no step takes


def test_programs_are_kept_where_the_config_says(data_dir, tmp_path, monkeypatch):
    def cut_power(*_, **__):
        raise PowerCut  # once the first program, that of the parameters, has run

    before = jax.config.jax_compilation_cache_dir
    jax.jit(lambda x: x + 1)(0)  # jax has opened another directory by then
    config = tiny_config(data_dir)
    config.compilation_cache = str(tmp_path / "cache")
    del config.streams.video, config.evaluations.video, config.evaluations.image
    monkeypatch.setattr(train, "Reporter", cut_power)
    try:
        with pytest.raises(PowerCut):
            train.train(config, tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    kept = [path.name for path in (tmp_path / "cache").iterdir()]
    assert any(re.fullmatch("jit_init-.*-cache", name) for name in kept), kept


def test_the_last_checkpoints_are_kept_with_config_classes_and_versions(finished):
    workdir, state = finished
    directory = workdir / "checkpoints"
    assert sorted(p.name for p in directory.iterdir()) == ["4", "6"]
    run = locate(workdir, 6).read_description()
    assert run["config"]["streams"]["video"]["dataset"] == "moving_shapes/videos"
    assert run["class_names"]["shapes"][:2] == ["circle", "square"]
    assert len(run["class_names"]["motions"]) == 24
    assert run["versions"]["jax"] == jax.__version__
    assert run["versions"]["sparse_tube_vit"] == sparse_tube_vit.__version__
    assert_bit_identical(locate(workdir, 6).read().params, state.ema)


@pytest.mark.smoke
def test_metrics_tell_of_both_streams_and_of_speed(finished):
    workdir, _ = finished
    lines = read_metrics(workdir)
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [2, 4, 6]
    for name in ("video/loss", "image/loss", "video/accuracy", "gradient_norm"):
        assert all(np.isfinite(line[f"train/{name}"]) for line in training)
    parts = training[-1]
    total = parts["train/video/loss"] + parts["train/image/loss"]
    np.testing.assert_allclose(parts["train/loss"], total, rtol=1e-5)
    assert 0 <= parts["train/waiting_share"] <= 1
    spent = {part: parts[f"train/seconds/{part}"] for part in PARTS}
    # Since step 4: two steps, and the evaluations of none.
    assert spent["step"] > 0 and spent["checkpoint"] > 0 and spent["evaluation"] == 0
    training = spent["input"] + spent["step"] + spent["logging"]
    seconds = parts["train/step_seconds"]
    np.testing.assert_allclose(training, 2 * seconds, rtol=1e-6)
    for name in ("video", "image"):
        speed = parts[f"train/{name}/examples_per_second"]
        np.testing.assert_allclose(speed, 8 / seconds, rtol=1e-6)
    assert parts["train/flops_per_second_per_device"] > 0
    absent = ("mfu", "device_bytes", "predicted")  # on a CPU
    assert not [name for name in parts if any(x in name for x in absent)]
    assert list(workdir.glob("events.out.tfevents.*"))
    assert "encoder/block_0/mlp/up/kernel" in (workdir / "parameters.txt").read_text()


def test_mirrored_classes_of_left_and_right_are_warned_of(
    data_dir, tmp_path, monkeypatch, caplog
):
    def cut_power(*_):
        raise PowerCut  # once the data sets are open

    monkeypatch.setattr(train.evaluator, "prepare", cut_power)
    config = tiny_config(data_dir)
    for flip in (False, True):
        config.streams.video.flip = flip
        with pytest.raises(PowerCut):
            train.train(config, tmp_path)
        assert ("streams.video mirrors clips" in caplog.text) == flip


def test_what_is_found_before_anything_is_compiled(data_dir, tmp_path):
    config = tiny_config(data_dir)
    config.evaluations.video.batch_size = 6
    with pytest.raises(IndivisibleBatch, match="evaluations.video.batch_size 6"):
        train.train(config, tmp_path)
    config = tiny_config(data_dir)
    config.streams.image.kind = "video"
    with pytest.raises(UnsupportedDataset, match="holds images; .* 'video'"):
        train.train(config, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(workdirs.UnusableWorkdir, match="file cannot be made"):
        train.train(tiny_config(data_dir), tmp_path / "file")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "checkpoints").touch()  # root may write everywhere else
    with pytest.raises(
        workdirs.UnusableWorkdir, match="there/checkpoints cannot be made"
    ):
        train.train(tiny_config(data_dir), tmp_path / "there")


def test_a_work_directory_that_takes_no_more_is_found_before_the_first_step(
    data_dir, tmp_path
):
    (tmp_path / "checkpoints").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as a full disk
    try:
        with pytest.raises(workdirs.UnusableWorkdir, match=f"{tmp_path} cannot be "):
            train.train(tiny_config(data_dir), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def one_still_step_from(source, data_dir):
    """A run whose only step leaves the parameters as they are."""
    config = tiny_config(data_dir)
    config.init.weights = str(source)
    config.total_steps = 1
    config.optimizer.update(learning_rate=1e-12, warmup_steps=0)
    config.model.new_layers = 1
    del config.evaluations.image, config.evaluations.video
    config.streams.image.head = "figures"
    return config


def test_a_run_starts_from_another(finished, data_dir, tmp_path, caplog):
    source = shutil.copytree(finished[0], tmp_path / "source")
    config = one_still_step_from(source, data_dir)
    with caplog.at_level("INFO", "sparse_tube_vit"):
        state = train.train(config, tmp_path / "run")
    ours, theirs = jax.device_get((state.params, finished[1].ema))
    np.testing.assert_allclose(ours.pop("head_figures")["kernel"], 0, atol=1e-7)
    assert "new_block_0" in ours["encoder"] and "head_shapes" in theirs
    del ours["encoder"]["new_block_0"], theirs["head_shapes"]
    assert_close = functools.partial(np.testing.assert_allclose, atol=1e-7)
    jax.tree.map(assert_close, ours, theirs)
    (report,) = [m for m in caplog.messages if m.startswith("Parameters from step 6")]
    compiling = [m.split(" in ")[0] for m in caplog.messages if "Compil" in m]
    assert compiling[:2] == ["Compiling the training step ...", "Compiled"]
    for line in (
        "  loaded   stem/tube_0  kernel (4, 4, 4, 3, 24), bias (24,)",
        "  new      head_figures  kernel (24, 6), bias (6,)",
        "  dropped  head_shapes  kernel (24, 6), bias (6,): there is no such head here",
        "  note     model.new_layers was 0 there, 1 here",
    ):
        assert line in report.splitlines(), report
    assert "new      encoder/new_block_0/mlp/up" in report

    # To go on it needs the other run no more.
    shutil.rmtree(source)
    assert_bit_identical(train.train(config, tmp_path / "run"), state)
    with pytest.raises(NoCheckpoint, match="source is no directory: there is no model"):
        train.train(config, tmp_path / "other")
