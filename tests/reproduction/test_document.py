"""The document: what it says of given results, and its pictures."""

import re
import shutil
import statistics
from pathlib import Path

import matplotlib.image
import pytest

from sparse_tube_vit.reproduction import document
from sparse_tube_vit.reproduction.directions import accuracies, compare
from sparse_tube_vit.reproduction.runs import Results, Run
from sparse_tube_vit.reproduction.tables import TABLES
from tests.reproduction.results import add, add_rows

FINETUNING = "ucf101_finetuning"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "docs"
    results = Results(folder / "reproduction")
    shapes = {"task": "moving_shapes"}
    add(results, "5", "videos_alone", top1s=(40, 42, 44), **shapes)
    add(results, "5", "images_first", top1s=(50, 56, 50), **shapes)
    add(results, "5", "jointly", top1s=(70, 73, 75), **shapes)
    add(results, "5", "videos_alone", "ucf101", (30,))
    add(results, "figure4", "0.8_video", "ucf101", (33, 35), minutes=None)
    add(results, "figure4", "1.5_video", "ucf101", (36, 35), minutes=None)
    document.write(results, folder / "reproduction.md")
    return folder


def test_rows_have_means_and_the_papers_figures(written):
    lines = (written / "reproduction.md").read_text().splitlines()
    assert "| row | paper | moving_shapes | ucf101 |" in lines
    jointly = next(line for line in lines if line.startswith("| jointly | 91.5"))
    assert "72.7 ± 2.5 (70.0, 73.0, 75.0; 114 tokens, 2.0 min)" in jointly
    alone = next(line for line in lines if line.startswith("| videos_alone | 85.6"))
    assert alone.endswith("| 30.0 (1 seed; 114 tokens, 2.0 min) |")
    strided = next(line for line in lines if line.startswith("| 0.8_video |"))
    assert strided.endswith("| 34.0 ± 1.4 (33.0, 35.0; 114 tokens) |")


def test_rows_that_share_a_run_are_named(written):
    text = (written / "reproduction.md").read_text()
    assert "\nThe same runs: fixed and 5:jointly.\n" in text
    assert "\nThe same runs: 1_joint and 5:jointly; 1_video and 5:videos_al" in text


def test_directions_are_tested_and_not_seen_by_eye(written):
    text = (written / "reproduction.md").read_text()
    assert "| jointly above videos_alone | confirmed (+30.7, p = 0.0" in text
    assert "| jointly above images_first | confirmed (+20.7, p = 0.0" in text
    assert "| jointly above 2d_patches |  |  |" in text
    assert text.count("Not run yet.") > 5
    # Of table 5 three, one of which is in "twice", too.
    verdicts = re.findall(r"(?m)^\|.*p = ([\d.e-]+)†?, unpaired", text)
    assert len(verdicts) == 4 and len({*verdicts}) == 3
    told = (
        "Holm's correction for 3 leaves 3 (†); 0 more have p < 0.05 alone (by chance,"
    )
    told = f"Of the paper's directions 3 are tested. {told} 0.2 of 3 have)"
    assert told in one_line(text)
    found = "\n* Confirmed, moving_shapes: jointly above videos_alone (`5`, +30.7, p = "
    assert found in text
    assert text.count("Of our own directions") == 0


def one_line(text):
    return " ".join(text.split())


def test_a_seed_may_lack_an_evaluation_that_others_have(tmp_path):
    results = Results(tmp_path)
    add(results, "5", "jointly", "ucf101", (30,), "views_1x1")
    run = Run.of("5", TABLES["5"].row("jointly"), "ucf101", 1)
    found = {"video": {"top1": 0.5, "tokens": 69}}
    results.add(run, {"evaluations": found, "minutes": 3.0})
    document.write(results, tmp_path / "document.md")
    text = (tmp_path / "document.md").read_text()
    assert "| jointly | 91.5 | 50.0 (1 seed; 69 tokens, 3.0 min) |" in text


def test_a_row_of_another_table_does_not_begin_one(written):
    text = one_line((written / "reproduction.md").read_text())
    # Of 7a, 7d and 7e there is one row, which is table 5's.
    assert "In part: moving_shapes (5), ucf101 (5, figure4)." in text
    assert "With three seeds:" not in text


def test_equal_rows_are_said_to_be(tmp_path):
    results = Results(tmp_path)
    for row in ("kept_and_fixed", "kept"):
        add(results, "positions", row, "ucf101_finetuning", (40, 50, 45), "clips")
    document.write(results, tmp_path / "doc.md")
    assert (
        "| kept_and_fixed above kept | equal (+0.0 in every seed) |"
        in (tmp_path / "doc.md").read_text()
    )


def test_pictures_lie_beside_the_results(written):
    text = (written / "reproduction.md").read_text()
    for name in ("joint", "tokens"):
        assert f"(reproduction/{name}.png)" in text
        picture = matplotlib.image.imread(written / "reproduction" / f"{name}.png")
        assert picture.shape[0] > 300 and picture.std() > 0.05


def test_every_seed_is_drawn_beside_the_papers_accuracy(tmp_path):
    results = Results(tmp_path)
    add(results, "5", "videos_alone", "moving_shapes", (40, 44))
    assert document.draw_joint(results) is None
    add(results, "5", "2d_patches", "moving_shapes", (30,))
    (ax,) = document.draw_joint(results).axes
    drawn = [line.get_xydata().round(6).tolist() for line in ax.lines]
    assert [[40, 0], [44, 0]] in drawn and [[42, -0.3], [42, 0.3]] in drawn
    assert [[85.6, 0]] in drawn and [[87.6, 3]] in drawn and [[30, 3]] in drawn
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[0] == "videos alone" and names[3] == "2d patches"


def test_minutes_are_those_of_the_quickest_run(tmp_path):
    results, run = Results(tmp_path), TABLES["5"].row("jointly")
    for seed, minutes in enumerate((9.0, None, 7.0)):
        found = {"video": {"top1": 0.5, "tokens": 114}}
        result = {"evaluations": found, "minutes": minutes}
        results.add(Run("5", run, "moving_shapes", seed), result)
    document.write(results, tmp_path / "document.md")
    text = (tmp_path / "document.md").read_text()
    assert "| 50.0 ± 0.0 (50.0, 50.0, 50.0; 114 tokens, 7.0 min) |" in text


def test_the_introduction_tells_the_tasks_sizes():
    def config_of(table, row, task):
        return Run.of(table, TABLES[table].row(row), task, 0).config

    def size(config):
        clip = config.clip
        return f"Clips of {clip.frames}x{clip.size}x{clip.size}"

    text = one_line(document.INTRODUCTION)
    for task in ("moving_shapes", "ucf101"):
        config = config_of("5", "jointly", task)
        model = f"{config.model.depth} blocks of width {config.model.width}"
        assert f"{size(config)}, {model}, {config.total_steps} steps" in text
        batches = {kind: x.batch_size for kind, x in config.streams.items()}
        told = f"step has {batches['video']} clips, and {batches['image']} images"
        assert told in text
    large, created, small = (
        config_of(*row, "ucf101_image_vit")
        for row in (("8", "0"), ("6", "head"), ("6", "small"))
    )
    images = f"{size(large)}, {large.streams.image.batch_size} images a step"
    assert f"{images}: {large.total_steps} steps, and {created.total_steps}" in text
    rate = f"{small.optimizer.learning_rate:.0e}".replace("-0", "-")
    assert f"a rate of {rate} and {small.total_steps} steps. *" in text
    assert size(small) == size(large)
    tuned = config_of("finetuning", "jointly", "ucf101_finetuning")
    assert f"from such a ViT, {tuned.total_steps} steps;" in text
    assert f"jointly with {tuned.streams.images.batch_size} images a step" in text


def test_results_of_another_config_are_named(tmp_path):
    (tmp_path / "ucf101.json").write_text('{"7a_gone": {"0": {}}}')
    document.write(Results(tmp_path), tmp_path / "document.md")
    text = (tmp_path / "document.md").read_text()
    assert "their config has changed: ucf101/7a_gone" in text
    assert Results(tmp_path).outdated() == ["ucf101/7a_gone"]


def test_pictures_may_lie_elsewhere(tmp_path):
    results = Results(tmp_path / "results")
    for row in ("videos_alone", "images_first", "jointly"):
        add(results, "5", row, "moving_shapes", (40, 42))
    document.write(results, tmp_path / "docs" / "document.md")
    text = (tmp_path / "docs" / "document.md").read_text()
    assert "(../results/joint.png)" in text


def test_the_committed_document_is_that_of_the_committed_results(tmp_path):
    docs = Path(__file__).parents[2] / "docs"
    (tmp_path / "reproduction").mkdir()
    for path in (docs / "reproduction").glob("*.json"):
        shutil.copy(path, tmp_path / "reproduction")
    document.write(Results(tmp_path / "reproduction"), tmp_path / "reproduction.md")
    written = (tmp_path / "reproduction.md").read_text()
    assert written == (docs / "reproduction.md").read_text()
    assert not re.findall(r"\]\([^)\s]*\s", written)  # an address in two lines


@pytest.mark.parametrize(
    ("row", "table", "names", "task"),
    [
        ("`moving_shapes`", "5", ("videos_alone", "jointly"), "moving_shapes"),
        ("from an image ViT", "finetuning", ("everything", "jointly"), FINETUNING),
    ],
)
def test_the_readme_has_the_committed_means(row, table, names, task):
    root = Path(__file__).parents[2]
    results = Results(root / "docs" / "reproduction")
    means = []
    for name in names:
        found = accuracies(results, table, TABLES[table].row(name), task)
        assert len(found) == 3
        means.append(f"{statistics.mean(found.values()):.1f}%")
    (line,) = re.findall(
        rf"(?m)^\| .*{row}.* three seeds: videos alone, jointly .*",
        (root / "README.md").read_text(),
    )
    assert line.endswith(f"| {', '.join(means)} |")


def test_what_was_tried_is_told_where_the_reverse_is_found(tmp_path):
    results = Results(tmp_path)
    add(results, "images", "images_alone", "moving_shapes", (90, 91, 92), "image")
    add(results, "images", "jointly", "moving_shapes", (80, 82, 82), "image")
    document.write(results, tmp_path / "document.md")
    text = one_line((tmp_path / "document.md").read_text())
    (tried,) = TABLES["images"].tried.values()
    reverse = "Why the reverse of jointly above images_alone on moving_shapes, and what"
    assert f"{reverse} was tried: {tried}" in text
    assert text.count("Why the reverse of") == 1


def test_every_reverse_of_the_committed_results_tells_what_was_tried():
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "reproduction.md").read_text()
    for section in re.split(r"(?m)^## ", text):
        reverse = section.count("| not confirmed, the reverse (")
        assert reverse == section.count("Why the reverse of ")


def test_what_was_tried_is_of_directions_that_there_are(tmp_path):
    for name, table in TABLES.items():
        found = {(*x.rows, x.task) for x in compare(name, Results(tmp_path))}
        assert {*table.tried} <= found


def test_results_that_name_their_commit_are_counted(tmp_path):
    results = Results(tmp_path)
    add(results, "5", "videos_alone", "ucf101", (30, 32))
    run = Run.of("5", TABLES["5"].row("videos_alone"), "ucf101", 2)
    found = {"video": {"top1": 0.3, "tokens": 69}}
    named = {"evaluations": found, "minutes": None, "commit": "0a1b2c3"}
    results.add(run, named)
    document.write(results, tmp_path / "document.md")
    text = one_line((tmp_path / "document.md").read_text())
    assert "the JSON files name for 1 of the 3 results." in text


def test_those_that_holms_correction_leaves_are_marked(tmp_path):
    results = Results(tmp_path)
    rows = {"videos_alone": (40, 42, 44), "images_first": (45, 52, 50)}
    rows |= {"jointly": (70, 73, 75), "2d_patches": (30, 60, 45)}
    add_rows(results, "5", "ucf101", rows)
    rows = {"kept_and_fixed": (60, 61, 62), "fixed": (10, 12, 11)}
    add_rows(results, "positions", "ucf101_finetuning", rows, "clips")
    document.write(results, tmp_path / "document.md")
    text = (tmp_path / "document.md").read_text()
    weak = re.search(
        r"\| images_first above videos_alone \| confirmed .*= ([\d.]+),", text
    )
    assert 0.01 < float(weak[1]) < 0.05
    assert re.search(r"jointly above videos_alone \| confirmed .*p = [\de.-]+†,", text)
    text = one_line(text)
    found = re.findall(r"(\w+ above \w+) \(`5`, [+-][\d.]+, p = [\de.-]+(†?),", text)
    assert ("jointly above videos_alone", "†") in found
    assert ("images_first above videos_alone", "") in found
    assert (
        "Of our own directions 1 are tested. Holm's correction for 1 leaves 1 (†)"
        in (text)
    )


def test_nothing_is_found_where_nothing_has_been_run(tmp_path):
    document.write(Results(tmp_path), tmp_path / "document.md")
    text = (tmp_path / "document.md").read_text()
    assert "## What was found\n\nNothing has been run.\n\n## How to" in text
    assert "are tested. Holm" not in text


def test_classes_in_either_direction_are_told(tmp_path):
    results = Results(tmp_path)
    row = TABLES["directions"].row("videos_alone")
    for seed, right in enumerate((0.25, 0.27)):
        run = Run.of("directions", row, "ucf101_directions", seed)
        found = {"video": {"top1": 0.13, "tokens": 69, "class_top1": right}}
        results.add(run, {"evaluations": found, "minutes": None})
    document.write(results, tmp_path / "document.md")
    text = (tmp_path / "document.md").read_text()
    cell = "13.0 ± 0.0 (13.0, 13.0; class in either direction 26.0; 69 tokens)"
    assert f"| videos_alone | {cell} |" in text
