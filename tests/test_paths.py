import os
from pathlib import Path

from etils import epath

from sparse_tube_vit import storage


def test_urls_stay_as_they_are_and_paths_begin_at_the_root():
    for kind in (str, epath.Path):
        assert storage.is_remote(kind("gs://bucket/run"))
        assert storage.absolute(kind("gs://bucket/run")) == "gs://bucket/run"
        assert not storage.is_remote(kind("runs/x"))
        assert storage.absolute(kind("runs/x")) == os.path.join(
            os.getcwd(), "runs", "x"
        )
    assert storage.absolute(Path("/a/../b")) == "/b"
