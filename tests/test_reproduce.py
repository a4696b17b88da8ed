"""The command: tasks without data, of other weights, and tables without runs."""

from pathlib import Path

import pytest

from sparse_tube_vit import reproduce
from sparse_tube_vit.config import InvalidConfig
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.reproduction.runs import Results, Run
from sparse_tube_vit.reproduction.tables import TABLES, select


def runs_left(tmp_path, capsys, *options):
    """The runs that the command lists, by task, and what it says of others."""
    folders = [f"--{name}={tmp_path}" for name in ("data_dir", "results", "runs")]
    reproduce.main([*options, *folders, "--dry_run"])
    said = capsys.readouterr()
    return {line.partition("/")[0] for line in said.out.splitlines()}, said.err


def test_tasks_without_data_or_with_other_weights_are_left_out(tmp_path, capsys):
    tasks, said = runs_left(tmp_path, capsys, "5", "finetuning:last_4")
    assert tasks == {"moving_shapes"}
    assert (
        "ucf101 is left out: image_folder/tiny_imagenet and ucf101/split1_small" in said
    )
    row = TABLES["finetuning"].row("last_4")
    result = {"evaluations": {}, "minutes": 1.0, "weights": "small"}
    Results(tmp_path).add(Run("finetuning", row, "ucf101_finetuning", 0), result)
    tasks, said = runs_left(tmp_path, capsys, "5", "finetuning:last_4")
    assert tasks == {"moving_shapes"}
    assert "ucf101_finetuning is left out: " in said
    assert "has results that start from small; those of --weights are hf://" in said


def test_a_named_task_needs_its_data(tmp_path, capsys):
    with pytest.raises(SystemExit):
        runs_left(tmp_path, capsys, "5", "--tasks", "moving_shapes", "ucf101")
    assert "DatasetNotPrepared: ucf101: image_folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        runs_left(tmp_path, capsys, "8")  # on one task alone
    assert "ucf101_image_vit: " in (said := capsys.readouterr().err)
    assert said.endswith("--ucf101 and --images do that, but in a --dry_run.\n")


def test_what_is_done_needs_neither_data_nor_weights(tmp_path, capsys):
    table, results = TABLES["finetuning"], Results(tmp_path)
    result = {"evaluations": {}, "minutes": 1.0, "weights": "small"}
    for seed in range(3):
        run = Run("finetuning", table.row("last_4"), "ucf101_finetuning", seed)
        results.add(run, result)
    tasks, said = runs_left(tmp_path, capsys, "finetuning:last_4")
    assert not tasks and "nothing is left to run on ucf101_finetuning" in said
    with pytest.raises(SystemExit):
        runs_left(tmp_path, capsys, "finetuning:head_only")
    assert "OtherData: ucf101_finetuning: " in capsys.readouterr().err


def test_runs_hold_absolute_paths_and_go_on_from_any_folder(tmp_path, monkeypatch):
    """And are of the code that planned them."""
    monkeypatch.chdir(tmp_path)
    given, code_now = [], [b"planned"]

    def prepare(*_):
        code_now[0] = b"changed"

    def carry_out(runs, results, workdirs, data_dir, weights, finished, code):
        given.extend([str(workdirs), weights])
        assert code == b"planned"

    monkeypatch.setattr(reproduce.runner, "carry_out", carry_out)
    monkeypatch.setattr(reproduce.data, "prepare_data", prepare)
    monkeypatch.setattr(reproduce.runner, "digest_of_code", lambda: code_now[0])
    folders = ["--data_dir=data", "--runs=runs", "--results=results"]
    folders += ["--document=document.md", "--seeds=1"]
    reproduce.main(["5:images", "--tasks=moving_shapes", "--weights=vit", *folders])
    assert given == [str(tmp_path / "runs"), str(tmp_path / "vit")]
    assert not Path("document.md").exists()  # that of the other code may be there
    code_now[0] = b"planned"
    hub = ["--weights=hf://user/name"]
    reproduce.main(["5:images", "--tasks=moving_shapes", *hub, *folders])
    assert given[3] == "hf://user/name"


def test_a_file_of_results_that_breaks_ends_no_run_of_another_task(
    tmp_path, monkeypatch
):
    done = []

    def carry_out(runs, results, workdirs, data_dir, weights, finished, code):
        (tmp_path / "ucf101.json").write_text("<<<<<<< a merge")
        finished()
        done.append(True)
        (tmp_path / "ucf101.json").unlink()

    monkeypatch.setattr(reproduce.runner, "carry_out", carry_out)
    folders = [f"--{name}={tmp_path}" for name in ("data_dir", "results", "runs")]
    document = tmp_path / "document.md"
    reproduce.main(
        ["5:images", "--tasks=moving_shapes", *folders, f"--document={document}"]
    )
    assert done and document.exists()


def test_weights_that_are_missing_leave_their_tasks_out(tmp_path, capsys):
    weights = f"--weights={tmp_path / 'nowhere'}"
    tasks, said = runs_left(tmp_path, capsys, "5", "8", weights)
    assert tasks == {"moving_shapes"}
    assert "ucf101_image_vit is left out: --weights " in said


def test_a_task_that_a_table_has_not_is_named():
    rows = select(["7f", "8"])
    with pytest.raises(InvalidConfig, match="7f, 8 are not run on moving_shapes, but"):
        reproduce.tasks_of(rows, ["moving_shapes"])
    assert reproduce.tasks_of(rows, ["ucf101_image_vit"]) == ["ucf101_image_vit"]


def test_one_task_is_enough():
    def check(runs):
        if runs[0].task != "ucf101":
            raise DatasetError("none")

    row = TABLES["5"].row("jointly")
    runs = [Run("5", row, task, 0) for task in TABLES["5"].tasks]
    left = reproduce.without_problem(runs, check, named=False)
    assert [run.task for run in left] == ["ucf101"]
    for some, named in ((runs, True), (runs[:1], False)):
        with pytest.raises(DatasetError, match="^moving_shapes: none$"):
            reproduce.without_problem(some, check, named)
    assert reproduce.without_problem([], check, named=True) == []
