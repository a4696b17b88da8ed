"""Runs: their order, commands, stored results, and what makes results outdated."""

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparse_tube_vit.checkpoints.image_vits.files import UnreadableWeights
from sparse_tube_vit.config import default_config, leave_open
from sparse_tube_vit.config.keys import REQUIRED
from sparse_tube_vit.config.schema import EVALUATION, STREAM
from sparse_tube_vit.reproduction import tables
from sparse_tube_vit.reproduction.runs import (
    Results,
    Run,
    UnreadableResults,
    name_of,
    plan,
    read_result,
)
from sparse_tube_vit.reproduction.tables import TABLES, select
from sparse_tube_vit.training import recipe


def run_of(table, row, task="moving_shapes", seed=0):
    return Run.of(table, TABLES[table].row(row), task, seed)


def result(top1=0.5, minutes=2.0):
    return {"evaluations": {"video": {"top1": top1, "tokens": 9}}, "minutes": minutes}


def test_a_model_to_start_from_is_trained_again_where_only_its_result_is_kept(tmp_path):
    results, images = Results(tmp_path), run_of("5", "images")
    for row in ("images", "jointly"):
        results.add(run_of("5", row), result())

    def names():
        rows = select(["5:images", "5:jointly", "5:images_first"])
        runs = plan(rows, ["moving_shapes"], 1, results, tmp_path / "runs")
        return [run.row.name for run in runs]

    assert names() == ["images", "images_first"]
    evaluations = images.workdir(tmp_path / "runs") / "evaluations"
    evaluations.mkdir(parents=True)  # as training leaves them at its end
    values = {"evaluation": "image", "step": 1200, "top1": 0.5}
    (evaluations / "image_step1200.json").write_text(json.dumps(values))
    assert names() == ["images_first"]


def test_runners_side_by_side_keep_the_results_of_each_other(tmp_path):
    one, other = Results(tmp_path), Results(tmp_path)
    one.add(run_of("5", "jointly"), result(0.7))
    other.add(run_of("5", "jointly", seed=1), result(0.8))
    other.add(run_of("7a", "none"), result(0.2))
    one.reload("moving_shapes")
    assert one.get(run_of("7a", "none")) == result(0.2)
    assert Results(tmp_path).get(run_of("5", "jointly")) == result(0.7)


def test_results_of_many_runners_at_once_are_all_kept(tmp_path):
    def add(seed):
        Results(tmp_path).add(run_of("5", "jointly", seed=seed), result(seed / 40))

    with ThreadPoolExecutor(8) as runners:
        [*runners.map(add, range(40))]
    found = Results(tmp_path).seeds("5", run_of("5", "jointly").row, "moving_shapes")
    assert found == {seed: result(seed / 40) for seed in range(40)}


def test_another_config_has_another_work_directory(tmp_path):
    run = run_of("5", "images_first")
    alone = dataclasses.replace(run, row=dataclasses.replace(run.row, after=""))
    assert alone.workdir(tmp_path).parent == run.workdir(tmp_path).parent
    assert alone.workdir(tmp_path) != run.workdir(tmp_path)


def test_cheapest_first_and_each_after_the_one_that_it_starts_from(tmp_path):
    tasks = ("ucf101_image_vit", "moving_shapes")
    runs = plan(select(["6", "5", "7a"]), tasks, 2, Results(tmp_path), tmp_path)
    names = [run.folder for run in runs]
    assert len({*names}) == len(names)
    alone = [Results(tmp_path).minutes(run) for run in runs if not run.after]
    assert alone == sorted(alone) and alone[0] < alone[-1] / 2
    for run in runs:
        if run.after:
            assert names.index(run.after.folder) < names.index(run.folder)
    assert "moving_shapes/5_jointly/1" in names
    assert not any("7a_fixed" in name for name in names)  # it is 5_jointly


def test_the_class_counts_in_either_direction(tmp_path):
    run = run_of("directions", "videos_alone", "ucf101_directions")
    names = ("Jump_Rope_backwards", "Jump_Rope_forwards", "PushUps_forwards")
    found = {
        "evaluation": "video",
        "step": run.config.total_steps,
        "top1": 0.5,
        "examples": 12,
        "per_class": {name: {"top1": 0.5, "count": 4} for name in names},
        "confusion": [[2, 1, 1], [3, 1, 0], [1, 0, 3]],
    }
    evaluations = run.workdir(tmp_path) / "evaluations"
    evaluations.mkdir(parents=True)
    (evaluations / "video.json").write_text(json.dumps(found))
    (read,) = read_result(run, run.workdir(tmp_path)).values()
    assert read["class_top1"] == (2 + 1 + 3 + 1 + 3) / 12


def test_measured_minutes_say_what_is_cheap(tmp_path):
    results = Results(tmp_path)
    minutes = {"videos_alone": 9.0, "images": 8.0, "jointly": 7.0, "images_first": 1.0}
    for row, measured in minutes.items():
        results.add(run_of("5", row), result(minutes=measured))
    rows = select([f"5:{row}" for row in minutes])
    runs = plan(rows, ["moving_shapes"], 2, results, tmp_path / "runs")
    names = [run.row.name for run in runs if run.seed]
    assert names == ["jointly", "images", "images_first", "videos_alone"]


def test_runners_of_two_versions_keep_the_results_of_each_other(tmp_path):
    results, run = Results(tmp_path), run_of("7a", "learned")
    results.add(run, result(0.7))
    older = run_of("7a", "learned")
    older.config.optimizer.learning_rate = 0.1
    assert older.digest != run.digest
    Results(tmp_path).add(older, result(0.2))
    both = Results(tmp_path)
    assert both.get(run) == result(0.7) and both.get(older) == result(0.2)
    assert both.outdated() == []


def test_finished_runs_are_kept_and_not_planned_again(tmp_path):
    results = Results(tmp_path)
    for seed in (1, 0):
        results.add(run_of("5", "jointly", seed=seed), result(0.5 + seed / 10))
    again = Results(tmp_path)
    row = TABLES["7a"].row("fixed")
    found = again.seeds("7a", row, "moving_shapes")
    assert {s: r["evaluations"]["video"]["top1"] for s, r in found.items()} == {
        0: 0.5,
        1: 0.6,
    }
    runs = plan(select(["5"]), ["moving_shapes"], 3, again, tmp_path)
    names = [run.folder for run in runs]
    assert "moving_shapes/5_jointly/2" in names
    assert "moving_shapes/5_jointly/1" not in names


def test_a_result_is_of_one_config(tmp_path, monkeypatch):
    results, run = Results(tmp_path), run_of("7a", "learned")
    results.add(run, result())
    assert run_of("7a", "learned", seed=5).digest == run.digest
    same = run_of("7a", "learned")
    same.config.loader.workers = 3
    leave_open(same.config.model, ["registers"])
    assert same.digest == run.digest
    table = TABLES["7a"]
    changed = dataclasses.replace(
        table.row("learned"), changes={"model.positions": "none"}
    )
    rows = (
        changed,
        *(row for row in table.rows if row.name not in ("learned", "none")),
    )
    other = dataclasses.replace(table, rows=rows)
    for known in (tables.TABLES, tables.PAPER):
        monkeypatch.setitem(known, "7a", other)
    assert run_of("7a", "learned").digest != run.digest
    assert results.get(run_of("7a", "learned")) is None
    assert results.outdated() == ["moving_shapes/7a_learned"]


def test_a_table_may_be_called_anything(monkeypatch, tmp_path):
    for known in (tables.TABLES, tables.PAPER):
        monkeypatch.setitem(known, "focal_loss", TABLES["7a"])
    run = Run("focal_loss", TABLES["7a"].row("learned"), "moving_shapes", 0)
    results = Results(tmp_path)
    results.add(run, result())
    assert results.outdated() == []


def test_no_default_has_changed_since_the_results():
    """A digest is of what differs from the defaults: they must stay what they were.

    A new key belongs into the file, by a default that leaves results as they are.
    """
    defaults = default_config().to_dict()
    for name, schema in (("streams", STREAM), ("evaluations", EVALUATION)):
        keys = {k: key.default for k, key in schema.items()}
        defaults[name] = {k: x for k, x in keys.items() if x is not REQUIRED}
    path = Path(__file__).parents[1] / "golden" / "reproduction_defaults.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(defaults))


def test_what_the_recipe_sets_counts(monkeypatch):
    def digests():
        rows = ("last_4", "last_4_112")
        return [run_of("finetuning", r, "ucf101_finetuning").digest for r in rows]

    before = digests()
    monkeypatch.setattr(recipe, "PIXELS_FROZEN", 196)
    of_recipe, of_112 = digests()
    assert of_recipe != before[0] and of_112 == before[1]


@pytest.mark.parametrize("table", TABLES)
def test_rows_of_a_table_that_train_apart_have_digests_of_their_own(table):
    for task in TABLES[table].tasks:
        runs = [run_of(table, row.name, task) for row in TABLES[table].rows]
        digests = {run.name: run.digest for run in runs}
        assert len({*digests.values()}) == len(digests)


def test_a_run_depends_on_the_one_before_it():
    run = run_of("5", "images_first")
    assert run.after.name == "5_images"
    alone = dataclasses.replace(run, row=dataclasses.replace(run.row, after=""))
    assert alone.digest != run.digest


def test_minutes_of_other_rows_are_by_their_flops(tmp_path):
    results = Results(tmp_path)
    before = results.minutes(run_of("twice", "jointly_twice"))
    assert before == pytest.approx(2 * results.minutes(run_of("5", "jointly")))
    results.add(run_of("5", "jointly"), result(minutes=7.0))
    minutes = {
        name: results.minutes(run_of(*name.split(":")))
        for name in ("twice:jointly_twice", "figure4:0.8_joint", "7a:none", "5:images")
    }
    assert minutes["twice:jointly_twice"] == pytest.approx(14.0)
    assert minutes["7a:none"] == pytest.approx(7.0, rel=0.01)
    # 230 tokens of clips for 114, with attention and images beside it; 16 of 130.
    assert minutes["figure4:0.8_joint"] == pytest.approx(7 * 2.15, rel=0.15)
    assert minutes["5:images"] == pytest.approx(7 * 32 / (114 * 16 / 16 + 32), rel=0.15)


def test_minutes_of_other_seeds_go_before_those_by_flops(tmp_path):
    results, run = Results(tmp_path), run_of("5", "jointly")
    results.add(run_of("5", "videos_alone"), result(minutes=1.0))
    for seed, minutes in enumerate((4.0, None, 50.0, 3.0)):  # None: it was killed
        results.add(run_of("5", "jointly", seed=seed), result(minutes=minutes))
    assert results.minutes(run) == 4.0


def test_commands_are_those_of_a_user(tmp_path):
    def words(run):
        lines = run.commands(tmp_path, "DATA", "hf://A/VIT")
        return [" ".join(line).replace(str(tmp_path), "RUNS") for line in lines]

    (train,) = words(run_of("5", "images_first"))
    assert "sparse_tube_vit.train --config=configs/reproduction.py:table=5," in train
    images = f"RUNS/moving_shapes/5_images/0/{run_of('5', 'images').digest}"
    assert f"--config.init.weights={images}" in train
    task = "ucf101_image_vit"
    run, small = (run_of("6", row, task) for row in ("last_8_gate", "small"))
    create, train = words(run)
    small = f"RUNS/{task}/6_small/0/{small.digest}"
    assert f"scale_up --small {small} --big hf://A/VIT" in create
    created = f"RUNS/{task}/6_last_8_gate/0/{run.digest}_from_hf_A_VIT"
    assert f"--workdir {created}" in create
    assert f"--config.init.weights={created}" in train
    (train,) = words(run_of("8", "2", task))
    assert "--config.init.weights=hf://A/VIT" in train
    (train,) = words(run_of("finetuning", "last_4", "ucf101_finetuning", 1))
    assert "--config=configs/finetune.py:last=4 " in train
    assert "--config.seed=1" in train and "images.dataset" not in train


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"5_jointly": []}',
        '{"5_jointly": {}, "5_images": {}, "5_jointly": {}}',
        '{"5_jointly": {"config": ""}}',
        '{"5_jointly": {"ab": {"0": {}}}}',
        '{"5_jointly": {"ab": {"0": {"minutes": 1}}}}',
        '{"5_jointly": {"ab": {"x": {"minutes": 1, "evaluations": {}}}}}',
        '{"5_jointly": {"ab": {"0": {"minutes": "a", "evaluations": {}}}}}',
        '{"5_jointly": {"ab": {"0": {"minutes": 1, "evaluations": '
        '{"video": {"top1": NaN}}}}}}',
    ],
)
def test_a_broken_file_is_named(text, tmp_path):
    (tmp_path / "ucf101.json").write_text(text)
    with pytest.raises(UnreadableResults, match=r"ucf101\.json"):
        Results(tmp_path)


def test_weights_have_the_name_of_their_folder_and_content(tmp_path):
    files = [tmp_path / x / "vit/model.safetensors" for x in "abc"]
    for file, content in zip(files, ("1", "2", "1"), strict=True):
        file.parent.mkdir(parents=True)
        file.write_text(content)
    names = [name_of(str(file)) for file in files]
    one = "6b86b273ff34"  # of sha256sum
    assert names[0] == names[2] == f"vit, SHA-256 {one}" != names[1]
    assert name_of(f"{files[0].parent}/") == names[0]
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "a" / "vit", parts)
    (parts / "model.safetensors").rename(parts / "model-1.safetensors")
    index = parts / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "model-1.safetensors"}}')
    assert name_of(str(index)) == f"parts, SHA-256 {one}"
    with pytest.raises(UnreadableWeights, match="--weights .*nowhere: "):
        name_of(str(tmp_path / "nowhere"))
    assert name_of("hf://facebook/dinov2-small") == "hf://facebook/dinov2-small"
    run = run_of("6", "last_8_gate", "ucf101_image_vit")
    given = [*map(str, files), "hf://a/b"]
    assert len({run.created(tmp_path, weights).name for weights in given}) == 3
