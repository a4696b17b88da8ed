"""The command: tasks without data, and tables without runs."""

import pytest

from sparse_tube_vit import reproduce
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.reproduction.tables import select


def test_a_named_task_needs_its_data(tmp_path):
    rows = select(["5", "6"])
    assert reproduce.prepared_tasks(rows, str(tmp_path), None) == ["moving_shapes"]
    with pytest.raises(DatasetError, match="--ucf101 and --images prepare what tables"):
        reproduce.prepared_tasks(select(["8"]), str(tmp_path), None)
    with pytest.raises(DatasetError, match="ucf101: .*tiny_imagenet .*--ucf101"):
        reproduce.prepared_tasks(rows, str(tmp_path), ["moving_shapes", "ucf101"])


def test_a_table_that_a_task_has_not_is_no_silence(tmp_path, capsys):
    options = ["--tasks", "moving_shapes", "--results", str(tmp_path), "--dry_run"]
    reproduce.main(["8", *options])
    assert "nothing is left to run on moving_shapes" in capsys.readouterr().err
