import pytest

from sparse_tube_vit.datasets.builders import folders
from sparse_tube_vit.datasets.preparing import plan as planning
from sparse_tube_vit.datasets.preparing import write
from tests.datasets.builders import official
from tests.datasets.written import contents

CLIPS = [f"train/{label}/{i}.mp4" for label in ("ant", "wolf") for i in range(7)]


@pytest.fixture
def clips(tmp_path):
    """A folder of clips, one of which does not decode."""
    official.write_clips(tmp_path / "clips", *CLIPS)
    (tmp_path / "clips" / CLIPS[0]).write_bytes(b"damaged")
    return tmp_path / "clips"


@pytest.fixture
def whole(clips, tmp_path, monkeypatch):
    """What is to come out: written here, one by one, in several shards."""
    monkeypatch.setitem(planning.SHARD_EXAMPLES, "video", 2)
    ours = builder(clips, tmp_path / "whole")
    assert write.write_dataset(ours)
    assert len(list(ours.directory.glob("*-of-00007"))) == 7
    return contents(ours.directory)


def builder(clips, data_dir):
    listing = folders.read_folder(clips, "video")
    return folders.VideoFolder(listing=listing, data_dir=data_dir, config="x")
