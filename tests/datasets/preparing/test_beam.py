"""Apache Beam: the same data set as this process alone writes."""

import functools
import os
import sys

import pytest

from sparse_tube_vit.datasets.preparing import beam, write
from tests.datasets.preparing.conftest import CLIPS, builder
from tests.datasets.written import contents

pytest.importorskip("apache_beam")

BEAM = (
    "--runner=DirectRunner --direct_num_workers=2"
    " --direct_running_mode=multi_processing"
)


def test_workers_of_beam_write_the_same(clips, whole, tmp_path):
    ours = builder(clips, tmp_path)
    assert write.write_dataset(
        ours, run=functools.partial(beam.write_shards, options=BEAM)
    )
    assert contents(ours.directory) == whole


def test_a_beam_pipeline_that_fails(clips, tmp_path, monkeypatch):
    ours = builder(clips, tmp_path)

    def run(plan):
        os.remove(clips / CLIPS[1])
        beam.write_shards(plan, BEAM)

    with pytest.raises(beam.BeamFailed, match=f"UnreadableFile: .*{CLIPS[1]}"):
        write.write_dataset(ours, run=run)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(beam.NoBeam, match="pip install"):
        beam.write_shards("plan", "")
