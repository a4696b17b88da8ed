"""Files that commands write, and those that they do not get to write."""

import contextlib
import errno
import fcntl
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest
from etils import epath

from sparse_tube_vit import storage
from sparse_tube_vit.errors import UnwritableOutput
from sparse_tube_vit.storage import whole_file
from tests import bucket


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "out.txt"
    for content in (b"first", b"second"):
        with whole_file(path) as write:
            write(lambda file, content=content: file.write(content))
        assert path.read_bytes() == content

    def half(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), whole_file(path) as write:
        write(half)
    assert path.read_bytes() == b"second"

    def no_space(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    no_room = pytest.raises(UnwritableOutput, match="out.txt .* No space left")
    with no_room, whole_file(path) as write:
        write(no_space)
    assert path.read_bytes() == b"second"
    assert [*tmp_path.iterdir()] == [path]


def test_what_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("no directory")
    for name in (".", "nowhere/out.txt", "file/out.txt", "/dev/null"):
        unwritable = pytest.raises(UnwritableOutput, match="cannot be written")
        with unwritable, whole_file(tmp_path / name):
            pytest.fail("the work was begun")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_that_is_none_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("", ".", "..", "/"):
        unwritable = pytest.raises(UnwritableOutput, match="something else, no file")
        with unwritable, whole_file(name):
            pytest.fail("the work was begun")
    assert not [*tmp_path.iterdir()]


def test_a_link_stays_one(tmp_path):
    """It may be /dev/stdout, of a command whose output goes to a file."""
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "out.txt", tmp_path / "link.txt"
    link.symlink_to(file)
    for content in (b"first", b"second"):
        with whole_file(link) as write:
            write(lambda file, content=content: file.write(content))
        assert link.is_symlink()
        assert file.read_bytes() == content
    assert [*file.parent.iterdir()] == [file]


def test_errors_of_the_work_are_its_own(tmp_path):
    lost = pytest.raises(FileNotFoundError, match="input")
    with lost, whole_file(tmp_path / "out.txt"):
        raise FileNotFoundError("input")
    assert not [*tmp_path.iterdir()]


def test_urls_stay_as_they_are_and_paths_begin_at_the_root():
    for kind in (str, epath.Path):
        assert storage.is_remote(kind("gs://bucket/run"))
        assert storage.absolute(kind("gs://bucket/run")) == "gs://bucket/run"
        assert not storage.is_remote(kind("runs/x"))
        assert storage.absolute(kind("runs/x")) == os.path.join(
            os.getcwd(), "runs", "x"
        )
    assert storage.absolute(Path("/a/../b")) == "/b"


def test_leftovers_are_hidden_files_and_folders_of_writers(tmp_path):
    leftover = storage.temporary(tmp_path / "release")
    leftover.mkdir()
    (leftover / "model").write_text("half")
    storage.temporary(tmp_path / "a.png").write_text("half")
    for name in (".keep", "a.json", f"x.{'0' * 32}"):
        (tmp_path / name).write_text("mine")
    with whole_file(tmp_path / "b.json") as write:
        storage.remove_leftovers(tmp_path)
        write(lambda file: file.write(b"whole"))
    storage.remove_leftovers(tmp_path / "nowhere")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".keep", "a.json", "b.json", f"x.{'0' * 32}"}


@pytest.fixture
def nfs(monkeypatch):
    """Locks as of NFS: only what is open for writing has them."""
    flock = fcntl.flock

    def lock(file, operation):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock)


def test_files_and_folders_are_locked_on_nfs(nfs, tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("content")
    for path in (folder, file):
        for _ in range(2):
            with storage.locked(path) as mine, storage.locked(path, 0) as other:
                assert mine and not other
    assert not [*folder.iterdir()] and file.read_text() == "content"


def test_what_is_being_written_on_nfs_is_no_leftover(nfs, tmp_path):
    folder = storage.temporary(tmp_path / "release")
    folder.mkdir()
    (folder / "model").write_text("half")
    with storage.locked(folder), whole_file(tmp_path / "a.json"):
        before = sorted(tmp_path.rglob("*"))
        storage.remove_leftovers(tmp_path)
        assert sorted(tmp_path.rglob("*")) == before and len(before) == 4
    storage.remove_leftovers(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_where_nothing_can_be_locked_all_is_left(tmp_path, monkeypatch, caplog):
    def lock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lock)
    (leftover := storage.temporary(tmp_path / "a.json")).write_text("half")
    storage.remove_leftovers(tmp_path)
    assert [*tmp_path.iterdir()] == [leftover] and not caplog.messages
    with storage.locked(tmp_path) as mine:
        assert mine
    assert f"{tmp_path}/.lock cannot be locked" in caplog.text


def test_a_lock_that_is_let_go_while_others_open_it_locks_out_the_next(
    tmp_path, monkeypatch
):
    """By then its file is removed, and a lock on it is none."""
    holder, flock = contextlib.ExitStack(), fcntl.flock
    holder.enter_context(storage.locked(tmp_path))

    def lock(file, operation):
        holder.close()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    with storage.locked(tmp_path, 0) as mine, storage.locked(tmp_path, 0) as other:
        assert mine and not other


def test_a_file_in_a_bucket_is_written_without_others(monkeypatch):
    objects = bucket.use(monkeypatch)
    with whole_file("gs://written/out.txt") as write:
        assert not objects.names("written")
        write(lambda file: file.write(b"whole"))
    assert objects.names("written") == ["out.txt"]


def test_a_growing_file_goes_on_after_what_is_there(tmp_path, monkeypatch):
    objects = bucket.use(monkeypatch)
    for path in (tmp_path / "lines", "gs://growing/lines"):
        for content in (b"1\n2\n", b"3\n"):
            file = storage.GrowingFile(path)
            for line in content.splitlines(keepends=True):
                file.append(line)
            file.flush()
            file.flush()  # there is nothing left to write
        assert epath.Path(path).read_bytes() == b"1\n2\n3\n"
    assert objects.names("growing") == ["lines"]


class SlowPath:
    """A URL's file, each put of which waits to be let through; `fails` of them fail."""

    def __init__(self):
        self.puts, self.free, self.fails = [], threading.Semaphore(0), 0

    def __fspath__(self):
        return "gs://slow/file"

    __str__ = __fspath__

    def write_bytes(self, content):
        self.free.acquire()
        self.puts.append(content)
        if self.fails:
            self.fails -= 1
            raise OSError("quota")


def test_nothing_waits_for_a_put_and_the_next_has_all_that_came(monkeypatch):
    bucket.use(monkeypatch)
    file = storage.GrowingFile("gs://slow/file")
    file.path = path = SlowPath()
    for content in (b"1", b"2", b"3"):
        file.append(content)  # the first put has not ended
    path.free.release(2)
    file.flush()
    assert path.puts == [b"1", b"123"]


def test_a_put_that_fails_is_tried_again_and_is_no_silence(monkeypatch, caplog):
    bucket.use(monkeypatch)
    file = storage.GrowingFile("gs://slow/file")
    file.path = path = SlowPath()
    path.free.release(10)
    path.fails = 1
    file.append(b"1")
    file.flush()
    (said,) = [m for m in caplog.messages if "slow" in m]
    assert re.fullmatch("gs://slow/file cannot .*quota.* It is tried again.", said)
    assert path.puts == [b"1", b"1"]
    path.fails = 2
    file.append(b"2")
    with pytest.raises(UnwritableOutput, match="gs://slow/file cannot .*quota"):
        file.flush()
    file.append(b"3")
    file.flush()
    assert path.puts[2:] == [b"12", b"12", b"123"]


def test_files_below_links_to_folders(tmp_path):
    """As `find -L` lists them, which follows links and ends at loops."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for name in ("a/1", "a/deep/2", "b/3", "../elsewhere/4", ".hidden_file"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    for link, target in {
        "linked": elsewhere,
        "a/deep/to_elsewhere": elsewhere,
        "b/5": elsewhere / "4",
        "a/up": root,
        "a/deep/here": ".",
        "b/to_a": "../a",
        "a/to_b": "../b",
        "dead": "nowhere",
        "round": "round",
    }.items():
        (root / link).symlink_to(target)
    os.mkfifo(root / "pipe")
    command = ["find", "-L", root, "-type", "f"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.split()
    files, left_out = storage.files_below(root)
    assert files == sorted(map(epath.Path, found)) and len(files) == 12
    left_out = {os.path.relpath(path, root): why for path, why in left_out.items()}
    assert left_out["dead"] == "a link to nowhere, which is absent"
    assert left_out["round"] == "a link to round, which is absent"
    assert left_out["pipe"] == "no regular file"
    loops = {name for name, why in left_out.items() if "which holds it" in why}
    assert {"a/up", "a/deep/here", "a/to_b/to_a", "b/to_a/to_b"} <= loops
    assert storage.files_below(tmp_path / "absent") == ([], {})


def test_files_of_macos_and_hidden_folders_are_left_out(tmp_path):
    for name in ("1", "._1", "__MACOSX/2", ".git/3", "a/._4", "a/5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    files, left_out = storage.files_below(tmp_path)
    assert files == [tmp_path / "1", tmp_path / "a/5"]
    names = {path.relative_to(tmp_path).as_posix() for path in left_out}
    assert names == {"._1", "__MACOSX", ".git", "a/._4"}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(storage.UnreadableFile, match=f"{tmp_path} .* Permission den"):
        storage.files_below(tmp_path)
