"""A run goes on from its latest checkpoint, bit-identical, and only as what it was."""

import functools
import importlib.metadata
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from sparse_tube_vit import train
from sparse_tube_vit.checkpoints import run as run_module
from sparse_tube_vit.checkpoints.run import OtherRun
from sparse_tube_vit.checkpoints.stored import locate
from sparse_tube_vit.checkpoints.workdir import WorkdirLock
from sparse_tube_vit.config import from_json
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.distributed import cores, hosts
from sparse_tube_vit.distributed.sharding import make_mesh
from sparse_tube_vit.evaluation import evaluator
from sparse_tube_vit.input import pipeline
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.training.freezing import NewButFrozen
from sparse_tube_vit.training.reporting import read_metrics
from tests.interrupted import (
    PowerCut,
    assert_bit_identical,
    cut_power_in,
    without_times,
)
from tests.tiny import tiny_config


@pytest.fixture
def finished_copy(finished, tmp_path):
    """A copy of the finished run's work directory, for tests that write into it."""
    return shutil.copytree(finished[0], tmp_path / "finished")


def test_interrupted_and_resumed_ends_bit_identical(
    finished, data_dir, tmp_path, monkeypatch
):
    workdir, expected = finished
    with monkeypatch.context() as patch:
        cut_power_in(6, patch)  # steps 5 and 6 are lost, and done again
        with pytest.raises(PowerCut):
            train.train(tiny_config(data_dir), tmp_path)
    assert locate(tmp_path).step == 4
    # What is lost is made anew by processes, as where there are cores for them.
    monkeypatch.setattr(cores, "worker_cores", lambda: 3)
    started = []
    monkeypatch.setattr(
        pipeline,
        "iterate",
        lambda batches, loader, where, *parts, iterate=pipeline.iterate: (
            started.append((where, loader.workers))
            or iterate(batches, loader, where, *parts)
        ),
    )
    resumed = train.train(tiny_config(data_dir), tmp_path)
    assert_bit_identical(resumed, expected)
    processes = dict(started)
    assert processes["streams.video"] + processes["streams.image"] == 3
    assert processes["evaluations.video"] == 0  # it is short
    # The metrics of both are those of one run, each step once.
    ours, theirs = (without_times(read_metrics(d)) for d in (tmp_path, workdir))
    assert [x["step"] for x in ours] == [2, 4, 6, 6, 6]
    assert ours == theirs


@pytest.fixture(scope="module")
def late(finished, data_dir, tmp_path_factory):
    """(config, workdir, last state): tubes are frozen, the block waits three steps."""
    config = tiny_config(data_dir)
    config.init.weights = str(finished[0])
    config.model.new_layers = 1
    config.optimizer.update(trained_layers=2, layer_decay=0.7, head_steps=3)
    config.mesh.update(data=2, fsdp=2, tensor=2)
    config.checkpoint.update(every_steps=1, keep=6)
    del config.evaluations.video, config.evaluations.image
    workdir = tmp_path_factory.mktemp("late")
    return config, workdir, train.train(config, workdir)


def test_what_is_fresh_trains_from_the_start_and_the_rest_after_its_steps(
    finished, late
):
    """Either clock's first step is at a rate of 0: that of step 1, and of step 4."""
    before = weights = finished[1].ema
    for step in range(1, 7):
        params = locate(late[1], step).read(ema=False).params
        assert_bit_identical(params["stem"], weights["stem"])
        same = jax.tree.map(
            np.array_equal,
            params["encoder"]["block_0"]["mlp"],
            weights["encoder"]["block_0"]["mlp"],
        )
        assert {*jax.tree.leaves(same)} == {step < 5}
        probes = [tree["pooling"]["probe"] for tree in (params, before)]
        assert np.array_equal(*probes) == (step == 1)
        before = params


def test_a_run_with_frozen_layers_resumes_bit_identical(
    finished, late, tmp_path, monkeypatch
):
    config, _, expected = late
    config = config.copy_and_resolve_references()
    config.checkpoint.every_steps = 2
    with monkeypatch.context() as patch:
        cut_power_in(6, patch)
        with pytest.raises(PowerCut):
            train.train(config, tmp_path / "cut")
    assert_bit_identical(train.train(config, tmp_path / "cut"), expected)
    read = locate(tmp_path / "cut", 6).read().params
    assert_bit_identical(read, expected.eval_params)
    assert_bit_identical(read["stem"], finished[1].ema["stem"])

    config.optimizer.trained_layers = 0
    with pytest.raises(NewButFrozen, match="no encoder/new_block_0/.* keeps from"):
        train.train(config, tmp_path / "head")


def test_a_run_goes_on_with_other_devices_and_options(
    finished, data_dir, tmp_path, monkeypatch
):
    """From eight devices that share parameters, in a loop over layers, to one."""
    config = tiny_config(data_dir)
    config.mesh.update(data=1, fsdp=8)
    config.model.update(scan=True, remat="full", attention="xla")
    with monkeypatch.context() as patch:
        cut_power_in(6, patch)
        with pytest.raises(PowerCut):
            train.train(config, tmp_path)
    assert locate(tmp_path).step == 4
    one = functools.partial(train.sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(train.sharding, "make_mesh", one)
    state = train.train(tiny_config(data_dir), tmp_path)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, finished[1]
    )
    # The checkpoint of the eight and that of the one are of the same form.
    ours, theirs = (locate(tmp_path, step).read().params for step in (4, 6))
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)


def test_a_finished_run_is_not_trained_and_makes_the_results_that_it_lacks(
    finished, finished_copy, data_dir, monkeypatch
):
    workdir, expected = finished_copy, finished[1]
    before = (workdir / "checkpoints" / "6").stat().st_mtime_ns
    lines, evaluated = read_metrics(workdir), []
    result = workdir / "evaluations" / "video_step6_2x3.json"
    result.unlink()  # as if the run had been stopped in its last evaluation
    run = evaluator.Evaluator.run
    monkeypatch.setattr(
        evaluator.Evaluator,
        "run",
        lambda self, *options: evaluated.append(self.name) or run(self, *options),
    )
    for _ in range(2):
        assert_bit_identical(train.train(tiny_config(data_dir), workdir), expected)
    assert (workdir / "checkpoints" / "6").stat().st_mtime_ns == before
    assert result.exists() and read_metrics(workdir) == lines
    assert evaluated == ["video"]


def test_evaluations_without_result_or_metrics_are_unfinished(
    finished, tmp_path, monkeypatch
):
    workdir = epath.Path(shutil.copytree(finished[0], tmp_path / "run"))
    run = locate(workdir, 6).read_description()
    config, names = from_json(run["config"]), run["class_names"]
    model = make_model(config, {head: len(classes) for head, classes in names.items()})

    def unfinished(step=6):
        evaluations = evaluator.prepare(config, names, model, make_mesh(config))
        left = train.unfinished(evaluations, workdir, step)
        return [evaluation.name for evaluation in left]

    assert unfinished() == [] and unfinished(step=4) == ["image", "video"]
    with monkeypatch.context() as patch:  # another host, which goes by the first
        patch.setattr(jax, "process_index", lambda: 1)
        patch.setattr(hosts, "gather", lambda key, mine: ['["image"]', mine])
        assert unfinished() == ["image"]
    config.evaluations.video.spatial_views = 1  # which may change in a run
    assert unfinished() == ["video"]
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(x for x in lines if "evaluation/image/" not in x))
    assert unfinished() == ["image", "video"]


def test_a_run_does_not_go_on_with_data_that_was_prepared_again(
    finished_copy, data_dir, tmp_path, monkeypatch
):
    """And does not end one that trains in the same bucket, as what goes on does."""
    taken_over = []
    monkeypatch.setattr(WorkdirLock, "take_over", lambda lock: taken_over.append(lock))

    def copy(name):
        config = tiny_config(shutil.copytree(data_dir, tmp_path / name))
        (manifest,) = tmp_path.glob(f"{name}/moving_shapes/videos/*/manifest.csv")
        return config, manifest

    config, manifest = copy("elsewhere")
    train.train(config, finished_copy)
    assert len(taken_over) == 1
    listed = manifest.read_text()
    manifest.write_text(listed + listed.splitlines()[-1] + "\n")
    with pytest.raises(OtherRun, match=r"streams.video.digest: '\w+' then, '\w+'"):
        train.train(config, finished_copy)
    assert len(taken_over) == 1


def test_a_run_does_not_go_on_with_another_version_of_its_data(
    finished_copy, data_dir, monkeypatch
):
    fingerprint = reading.Split.fingerprint
    monkeypatch.setattr(
        reading.Split,
        "fingerprint",
        lambda split: fingerprint(split) | {"version": "5.2.0"},
    )
    with pytest.raises(OtherRun, match=r"streams.video.version: '1.*' then, '5.2.0'"):
        train.train(tiny_config(data_dir), finished_copy)
    read = run_module.restore_description

    def older(root):  # which do not tell the version
        description = read(root)
        for data in description["data"].values():
            del data["version"]
        return description

    monkeypatch.setattr(run_module, "restore_description", older)
    assert train.train(tiny_config(data_dir), finished_copy).step == 6


def test_a_run_that_goes_on_with_other_packages_says_so(
    finished_copy, data_dir, monkeypatch, caplog
):
    train.train(tiny_config(data_dir), finished_copy)
    assert "other packages" not in caplog.text
    read = run_module.restore_description

    def older(root):
        description = read(root)
        description["versions"] |= {"grain": "0.0.1", "left": "1"}
        description["versions"]["sparse_tube_vit"] = "not installed"  # before 2026-12
        return description

    monkeypatch.setattr(run_module, "restore_description", older)
    train.train(tiny_config(data_dir), finished_copy)
    grain = importlib.metadata.version("grain")
    assert f"uninterrupted run: grain 0.0.1 then, {grain} now\n" in caplog.text


def test_a_work_directory_of_another_config_is_refused(finished_copy, data_dir):
    config = tiny_config(data_dir)
    config.optimizer.learning_rate = 0.5
    config.streams.video.mixup = 0.0
    with pytest.raises(OtherRun) as error:
        train.train(config, finished_copy)
    assert "optimizer.learning_rate: 0.001 then, 0.5 now" in str(error.value)
    assert "streams.video.mixup: 0.2 then, 0.0 now" in str(error.value)
