"""Files that commands write, and those that they do not get to write."""

import os
from pathlib import Path

import pytest
from etils import epath

from sparse_tube_vit import storage
from sparse_tube_vit.errors import UnwritableOutput
from sparse_tube_vit.storage import whole_file


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
