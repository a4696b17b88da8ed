"""Results of evaluations: their files, and their numbers in words."""

import json

import pytest

from sparse_tube_vit.checkpoints import evaluations


def test_evaluations_are_read_by_their_file_names(tmp_path):
    directory = tmp_path / "lr[0.1]"  # no pattern
    assert evaluations.read_evaluations(directory) == {}
    directory.mkdir()
    written = {f"video_step{i}_2x3": {"step": i, "examples": 7} for i in (0, 1)}
    for name, result in reversed(written.items()):
        (directory / f"{name}.json").write_text(json.dumps(result))
    for name in (".video_step0_2x3.json", "video_step0_2x3.png"):
        (directory / name).write_text(json.dumps(written["video_step0_2x3"]))
    found = evaluations.read_evaluations(directory)
    assert [*found.items()] == [*written.items()]


@pytest.mark.parametrize("text", ["[1, 2]", "3", "null", "{", '"step"', "\xff"])
def test_files_of_others_beside_evaluations_are_skipped(tmp_path, caplog, text):
    (tmp_path / "notes.json").write_bytes(text.encode("latin-1"))
    assert evaluations.read_evaluations(tmp_path) == {}
    assert "notes.json is skipped" in caplog.text


def test_numbers_in_words():
    protocol = {"temporal_views": 4, "spatial_views": 3, "combine_views": "mean"}
    protocol |= {"tokens": 559, "training_tokens": 559}
    assert evaluations.views_in_words(protocol) == "4x3"
    maximum = protocol | {"combine_views": "max"}
    assert evaluations.views_in_words(maximum) == "maximum of 4x3"
    assert evaluations.tokens_in_words(protocol) == "559 tokens"
    for tokens, words in ((1118, "2.0 times"), (280, "0.50 times")):
        found = evaluations.tokens_in_words({"tokens": tokens, "training_tokens": 559})
        assert found == f"{tokens} tokens, {words} as many as in training"
    result = {"top1": 0.712, "mAP": 0.5, "step": 3}
    assert evaluations.accuracies_in_words(result) == "Top-1 71.2%, mAP 50.0%"
