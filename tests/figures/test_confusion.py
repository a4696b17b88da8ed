"""Confusion matrices of evaluations are drawn once, and again when they change."""

import json
import os

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from sparse_tube_vit import figures
from sparse_tube_vit.errors import UnwritableOutput


def write(directory, name, **result):
    path = directory / f"{name}.json"
    path.write_text(json.dumps({"step": 2, "summary": f"{name}: Top-1 50%"} | result))
    os.utime(path, (1000, 1000))
    return path


def confused(*rows):
    return {"confusion": rows, "per_class": {"cat": {}, "a $dog$ ": {}}}


def test_names_that_the_font_lacks_are_reported_once(tmp_path, caplog, recwarn):
    result = {"confusion": ((3, 1), (2, 2)), "per_class": {"跳舞": {}, "cat": {}}}
    for name in ("a", "b"):
        write(tmp_path, name, **result)
    assert len(figures.draw_confusions(tmp_path)) == 2
    assert [x for x in caplog.messages if "has no 舞跳" in x] == caplog.messages
    assert len(caplog.messages) == 1 and not [*recwarn]


def test_rows_are_labels_and_columns_predictions():
    figure = figures.confusion(np.array([[3, 1], [0, 2]]), ["cat", "dog"], "")
    ax = figure.axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("label", "prediction")
    counts = {text.get_position(): text.get_text() for text in ax.texts}
    assert counts == {(0, 0): "3", (1, 0): "1", (1, 1): "2"}  # (across, down)


def test_what_lacks_a_picture_is_drawn(tmp_path):
    """As `figures.confusion` draws it with the summary above, and no other twice."""
    result = write(tmp_path, "images_step2", **confused((3, 1), (2, 2)))
    write(tmp_path, "crowds_step2", mAP=0.5)
    png = tmp_path / "images_step2_confusion.png"
    assert figures.draw_confusions(tmp_path) == [png]
    assert sorted(tmp_path.glob("*.png")) == [png]
    expected = figures.confusion(
        np.array([[3, 1], [2, 2]]), ["cat", "a $dog$ "], "images_step2: Top-1 50%"
    )
    figures.save(expected, tmp_path / "expected")
    first = np.asarray(Image.open(png))
    np.testing.assert_array_equal(first, np.asarray(Image.open(tmp_path / "expected")))

    assert figures.draw_confusions(tmp_path) == []
    result.write_text(result.read_text().replace("[3, 1]", "[1, 3]"))
    os.utime(png, (2000, 2000))
    os.utime(result, (2000, 2000))  # both within a second
    assert figures.draw_confusions(tmp_path) == [png]
    assert (np.asarray(Image.open(png)) != first).any()


@pytest.mark.parametrize("name", ["Ba$$in", "$5_vs_$10", r"$\frac$", "a_b^{", "_x"])
def test_names_are_no_markup(tmp_path, name):
    write(tmp_path, "e", confusion=[[1, 0], [0, 1]], per_class={name: {}, "cat": {}})
    (png,) = figures.draw_confusions(tmp_path)
    assert png.exists()
    figure = figures.confusion(np.eye(2, dtype=int), [name, "cat"], name)
    figure.draw_without_rendering()
    assert {text.get_text() for text in figure.findobj(Text)} > {name, "cat"}
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
    assert Text(0, 0, "$x$").get_parse_math()  # others' figures stay as they are


def test_it_cannot_be_written(tmp_path):
    write(tmp_path, "images_step2", **confused((3, 1), (2, 2)))
    (tmp_path / "images_step2_confusion.png").mkdir()
    os.utime(tmp_path / "images_step2_confusion.png", (500, 500))
    with pytest.raises(UnwritableOutput, match=r"images_step2_confusion\.png cannot"):
        figures.draw_confusions(tmp_path)


def test_files_of_others_and_results_without_a_summary(tmp_path, caplog):
    (tmp_path / "notes.json").write_text("null")
    path = write(tmp_path, "images_step2", **confused((3, 1), (2, 2)))
    result = json.loads(path.read_text())
    del result["summary"]  # as the first evaluations were written
    path.write_text(json.dumps(result))
    assert figures.draw_confusions(tmp_path) == [
        tmp_path / "images_step2_confusion.png"
    ]
