"""Undecodable examples stay counted when a run is resumed."""

import pytest

from sparse_tube_vit.training import undecodable
from sparse_tube_vit.training.undecodable import Undecodable


class Split:
    name, split = "clips", "train"

    def __len__(self):
        return 100


def test_a_resumed_run_counts_on_from_its_step(tmp_path):
    videos, images = (Undecodable(Split(), max_share=0.03) for _ in range(2))
    videos.note({"a": "cut short", "b": "empty"}, step=3)
    videos.note({"b": "empty", "ü": "empty"}, step=7)
    undecodable.save(tmp_path, {"videos": videos, "images": images})

    def resumed(step, **options):
        streams = {"videos": Undecodable(Split(), **({"max_share": 0.03} | options))}
        undecodable.restore(tmp_path, streams, step)
        return streams["videos"].problems

    assert resumed(0) == resumed(2) == {}
    assert resumed(3) == resumed(6) == {"a": "cut short", "b": "empty"}
    assert resumed(7) == videos.problems
    with pytest.raises(undecodable.TooManyUndecodable, match="in its undecodable.js"):
        resumed(7, max_share=0.02)


@pytest.mark.parametrize("text", ["", "{", '{"videos": 3}', '{"videos": {"a": {}}}'])
def test_a_damaged_list_is_named(tmp_path, text):
    (tmp_path / undecodable.FILE).write_text(text)
    streams = {"videos": Undecodable(Split(), max_share=1)}
    with pytest.raises(undecodable.DamagedList, match="Remove it"):
        undecodable.restore(tmp_path, streams, 5)


def test_without_a_list_there_is_nothing_to_restore(tmp_path):
    undecodable.restore(tmp_path, {"videos": Undecodable(Split(), 1)}, 5)
