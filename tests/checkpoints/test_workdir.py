"""Work directories that cannot be used, or are in use."""

import os
import socket
import subprocess
import sys

import pytest
from etils import epath

from sparse_tube_vit import storage
from sparse_tube_vit.checkpoints import workdir
from sparse_tube_vit.checkpoints.run import save_params
from tests import bucket


@pytest.mark.parametrize("name", ["lr[0.1]", "a\\b", "a*", "what?", "\udcff"])
def test_a_path_that_is_a_pattern_is_no_work_directory(tmp_path, name):
    path = epath.Path(tmp_path) / name / "run"
    with pytest.raises(workdir.UnusableWorkdir, match="choose another"):
        workdir.make_workdir(path)
    with pytest.raises(workdir.UnusableWorkdir, match="choose another"):
        save_params(path, {}, {})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["a b", "ü{x}", "$HOME", "100%", "~x#:;&", "]"])
def test_other_paths_are(tmp_path, name):
    workdir.make_workdir(epath.Path(tmp_path) / name)
    (directory,) = (tmp_path / name).iterdir()
    assert directory.name == "checkpoints" and not [*directory.iterdir()]


def test_one_training_uses_a_work_directory(tmp_path):
    lock = workdir.WorkdirLock(tmp_path)
    in_use = f"process {os.getpid()} on host {socket.gethostname()}"
    for _ in range(2):
        with pytest.raises(workdir.WorkdirInUse, match=in_use):
            workdir.WorkdirLock(tmp_path)
    lock.check()
    lock.close()
    assert not [*tmp_path.iterdir()]
    workdir.WorkdirLock(tmp_path).close()


def test_a_killed_training_leaves_no_lock_and_no_files(tmp_path):
    evaluations = tmp_path / "evaluations"
    evaluations.mkdir()
    program = f"""
import time
from sparse_tube_vit import storage
from sparse_tube_vit.checkpoints import workdir
lock = workdir.WorkdirLock({str(tmp_path)!r})
with storage.whole_file({str(evaluations / "a.json")!r}):
    print("begun", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (written,) = evaluations.iterdir()
        with pytest.raises(workdir.WorkdirInUse, match=f"process {process.pid} on"):
            workdir.WorkdirLock(tmp_path)
        storage.remove_leftovers(evaluations)
        assert written.exists()  # its writer lives
        process.kill()
    workdir.WorkdirLock(tmp_path).close()
    storage.remove_leftovers(evaluations)
    assert not [*evaluations.iterdir()]


def test_the_last_training_in_a_bucket_takes_it_over(monkeypatch):
    bucket.use(monkeypatch)
    first = workdir.WorkdirLock(epath.Path("gs://locks/run"))
    first.take_over()
    first.check()
    workdir.WorkdirLock(epath.Path("gs://locks/run")).close()  # a run that is refused
    first.check()
    second = workdir.WorkdirLock(epath.Path("gs://locks/run"))
    second.take_over()
    with pytest.raises(workdir.WorkdirInUse, match=f"process {os.getpid()}"):
        first.check()
    first.close()
    second.check()


def test_a_lock_that_cannot_be_read_ends_no_training(monkeypatch, caplog):
    storage = bucket.use(monkeypatch)
    lock = workdir.WorkdirLock(epath.Path("gs://locks/unread"))
    lock.take_over()
    storage.objects.pop(("locks", "unread/.training"))
    lock.check()
    assert "Whether another training uses gs://locks/unread is unknown" in caplog.text


def test_a_bucket_that_cannot_be_looked_up_is_named_before_a_run(monkeypatch):
    storage = bucket.use(monkeypatch)
    workdir.check_deletion("gs://hidden/run")
    monkeypatch.setattr(storage, "hidden", {"hidden"})
    with pytest.raises(
        workdir.UnusableWorkdir, match=r"storage\.buckets\.get"
    ) as error:
        workdir.check_deletion("gs://hidden/run")
    assert "403" in str(error.value)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    monkeypatch.delattr("google.cloud.storage")
    with pytest.raises(workdir.UnusableWorkdir, match=r"\[gcs\]"):
        workdir.check_deletion("gs://hidden/run")
    workdir.check_deletion("s3://hidden/run")
