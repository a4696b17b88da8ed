"""Inputs read ahead, and computed in batches."""

import time

import numpy as np

from sparse_tube_vit.inference import files
from sparse_tube_vit.video.limits import UndecodableClip


def test_results_come_in_order_and_before_the_last_file_is_read():
    """Nine files of two kinds, one of which waits alone for its batch."""
    read = []

    def of_file(path):
        read.append(path)
        if path == "bad":
            raise UndecodableClip("bad: cut short")
        return path[0], np.full((1, 1, 1, 1, 3), len(path))

    paths = ["i", "v", "bad", *("v" * n for n in range(2, 40))]
    computed = files.compute(
        paths, of_file, lambda _, x: x[:, 0, 0, 0, 0, 0], batch_size=2
    )
    first = next(computed)
    assert (first.path, first.group, first.result) == ("i", "i", 1)
    assert len(read) < len(paths)
    rest = [*computed]
    assert [x.path for x in (first, *rest)] == paths
    assert rest[1].problem == "cut short" and rest[1].result is None
    assert [x.result for x in rest if not x.problem] == [1, *range(2, 40)]


def test_many_cores_read_no_more_ahead_than_a_few_batches(monkeypatch):
    """A clip of 64 frames in 4x3 views takes 116 MB."""
    monkeypatch.setattr(files, "usable_cores", lambda: 64)
    read, most = [], 0

    def of_file(path):
        read.append(path)
        return "v", np.zeros((1, 1, 1, 1, 3))

    def of_batch(group, videos):
        nonlocal most
        time.sleep(0.05)  # what is read ahead is read meanwhile
        most = max(most, len(read) - computed)
        return videos[:, 0, 0, 0, 0, 0]

    computed, paths = 0, [str(i) for i in range(100)]
    for _ in files.compute(paths, of_file, of_batch, batch_size=2):
        computed += 1
    assert computed == 100 and 8 <= most <= 10


def test_files_that_would_fill_memory_wait(tmp_path, monkeypatch):
    """Of 100 bytes at once: a file of more is read alone."""
    monkeypatch.setattr(files, "usable_cores", lambda: 8)
    monkeypatch.setattr(files, "_BYTES_AT_ONCE", 100)
    sizes, open_now, most = [30, 40, 50, 200, 10, 60, 90, 30], [], []
    for i, size in enumerate(sizes):
        (tmp_path / f"{i}").write_bytes(bytes(size))

    def of_file(path):
        open_now.append(size := len(path.read_bytes()))
        most.append([*open_now])
        time.sleep(0.02)
        open_now.remove(size)
        return "v", np.full((1, 1, 1, 1, 3), size)

    paths = [tmp_path / f"{i}" for i in range(len(sizes))]
    computed = files.compute(paths, of_file, lambda _, x: x[:, 0, 0, 0, 0, 0])
    assert [x.result for x in computed] == sizes
    assert all(sum(together) <= 100 or together == [200] for together in most)
    assert max(map(len, most)) > 1
