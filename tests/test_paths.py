import os
from pathlib import Path

from etils import epath

from sparse_tube_vit import paths


def test_urls_stay_as_they_are_and_paths_begin_at_the_root():
    for kind in (str, epath.Path):
        assert paths.is_remote(kind("gs://bucket/run"))
        assert paths.absolute(kind("gs://bucket/run")) == "gs://bucket/run"
        assert not paths.is_remote(kind("runs/x"))
        assert paths.absolute(kind("runs/x")) == os.path.join(os.getcwd(), "runs", "x")
    assert paths.absolute(Path("/a/../b")) == "/b"
