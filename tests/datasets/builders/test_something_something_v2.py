"""Something-Something V2's JSON files: the order of the labels, and the test split."""

import json

import pytest

from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders import annotations
from sparse_tube_vit.datasets.builders.something_something_v2 import (
    SomethingSomethingV2,
)
from tests.datasets.builders import official

NAME = "something_something_v2"
# Not in the order of the numbers, which is not that of the alphabet either.
LABELS = {
    "Holding something next to something": "1",
    "Approaching something with your camera": "2",
    "Turning something upside down": "0",
}
IN_ORDER = (
    "Turning something upside down",
    "Holding something next to something",
    "Approaching something with your camera",
)


def entry(name, template):
    label = template.replace("[something]", "a cup")
    return {"id": name, "label": label, "template": template, "placeholders": ["a cup"]}


CONTENT = {
    "labels": LABELS,
    "train": [
        entry("78687", "Holding [something] next to [something]"),
        entry("42326", "Turning [something] upside down"),
        entry("100904", "Turning [something] upside down"),
    ],
    "validation": [entry("74225", "Approaching [something] with your camera")],
    "test": [{"id": "1420"}, {"id": "3055"}],
}


@pytest.fixture(params=["", "something-something-v2-"])
def release(tmp_path, request):
    """Annotations of three classes, as either release calls its files."""
    for name, content in CONTENT.items():
        (tmp_path / f"{request.param}{name}.json").write_text(json.dumps(content))
    return tmp_path


def read(root):
    return SomethingSomethingV2.read(root / "videos", root)


def test_prepared_and_read_back(release, capsys):
    names = ("78687.webm", "sub/42326.mp4", "74225.webm", "1420.webm")
    clips = list(official.write_clips(release / "videos", *names).values())
    source = ("--videos", release / "videos", "--annotations", release)
    out = official.prepared(capsys, release, NAME, *source)
    assert f"{NAME}: written to {release / 'data' / NAME / '1.0.0'} in" in out
    assert "note: 3 of the 174 official classes" in out
    assert "note: left out 2 clips of test that have no label" in out
    assert "left out: 1\n    100904: listed in" in out and "entry 3 (id 100904)" in out
    assert official.examples(release, NAME, "train") == {
        "78687": ("Holding something next to something", clips[0]),
        "42326": ("Turning something upside down", clips[1]),
    }
    assert official.examples(release, NAME, "validation") == {
        "74225": ("Approaching something with your camera", clips[2])
    }
    split = reading.open_split(NAME, "validation", release / "data", kind="video")
    assert split.class_names == IN_ORDER
    with pytest.raises(reading.UnknownSplit):
        reading.open_split(NAME, "test", release / "data")


def test_the_test_split_with_its_answers(release):
    clips = official.write_clips(release / "videos", "1420.webm", "78687.webm")
    (release / "test-answers.csv").write_text(
        "1420;Turning something upside down\n3055;Holding something next to something\n"
    )
    listing = read(release)
    (example,) = listing.splits["test"]
    assert (example.id, example.label) == ("1420", "Turning something upside down")
    assert example.source.read_bytes() == clips["1420.webm"]
    assert "3055" in [row.id for row in listing.left_out]
    assert not any("no label" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.json", '[\n{"id": "1",\n}]', "train.json:[23]: "),  # by Python
        ("train.json", "{}", "train.json:1: expected a list"),
        ("train.json", '[{"template": "x"}]', "train.json: entry 1 has no id"),
        ("train.json", '[{"id": "1"}]', r"entry 1 \(id 1\) has no template"),
        (
            "validation.json",
            '[{"id": "1", "template": "Eating [something]"}]',
            r"entry 1 \(id 1\): 'Eating something' is not in labels.json",
        ),
        (
            "validation.json",
            json.dumps([CONTENT["train"][1] | {"id": "78687"}]),
            r"entry 1 \(id 78687\): 78687 is .* in .*train.json",
        ),
        ("labels.json", '{"a": "0", "b": "2"}', "the numbers are not 0 to 1"),
        ("labels.json", '{"a": "zero"}', "'a' has no number but 'zero'"),
        ("labels.json", "{}", "labels.json: the numbers are not"),
        (
            "labels.json",
            json.dumps({str(i): i for i in range(175)}),
            "175 classes; the data set has 174",
        ),
        ("test-answers.csv", "1420,Turning", "test-answers.csv:1: expected `id;temp"),
        ("something-something-v2-train.json", "[]", "train.json could be .* or "),
    ],
)
def test_contradictory_annotations(tmp_path, name, text, message):
    for part, content in CONTENT.items():
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    official.write_clips(tmp_path / "videos", "78687.webm")
    (tmp_path / name).write_text(text)
    with pytest.raises(annotations.BadAnnotations, match=message):
        read(tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(annotations.BadAnnotations, match="no labels.json in"):
        read(tmp_path)
    with pytest.raises(annotations.BadAnnotations, match="nowhere is not a directory"):
        SomethingSomethingV2.read(tmp_path, tmp_path / "nowhere")
