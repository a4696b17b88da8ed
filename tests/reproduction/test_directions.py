"""Directions: what is compared once, and whose correction it counts in."""

import pytest

from sparse_tube_vit.reproduction.directions import compare, corrected, distinct
from sparse_tube_vit.reproduction.runs import Results
from tests.reproduction.results import add, add_rows


def test_a_difference_of_differences_is_tested(tmp_path):
    results = Results(tmp_path)
    rows = {"1_video": (50, 52, 51), "0.8_video": (40, 41, 41)}
    rows |= {"1_joint": (60, 61, 62), "0.8_joint": (59, 59, 60)}
    add_rows(results, "figure4", "ucf101", rows)
    words = "1_video above 0.8_video more than 1_joint above 0.8_joint"
    found = {(x.words, x.task): x.comparison for x in compare("figure4", results)}
    alone = found[words, "ucf101"]
    assert alone.difference == pytest.approx(26 / 3)  # 9, 9 and 8
    assert alone.verdict == "confirmed"
    assert found[words, "moving_shapes"] is None


def test_rows_that_tables_share_are_tested_once(tmp_path):
    results = Results(tmp_path)
    rows = {"videos_alone": (40, 42, 44), "jointly": (70, 73, 75)}
    add_rows(results, "5", "moving_shapes", rows)
    both = compare("5", results) + compare("twice", results)
    assert sum(x.is_tested for x in both) == 2
    (one,) = distinct(both).values()
    assert (one.table, one.words) == ("5", "jointly above videos_alone")
    assert one.is_papers and corrected(both) == {one.runs}


def test_equal_accuracies_of_other_runs_are_tested_apart(tmp_path):
    results = Results(tmp_path)
    rows = dict.fromkeys(("2xT", "2xS"), (70, 73, 75))
    add_rows(results, "7c", "moving_shapes", rows)
    add(results, "7b", "4", "moving_shapes", (40, 42, 44))
    found = [x.words for x in distinct(compare("7c", results)).values()]
    assert found == ["2xT above none", "2xS above none"]


def test_our_directions_do_not_correct_the_papers(tmp_path):
    """p of 0.03 alone is kept; beside many of ours it would not be."""
    results = Results(tmp_path)
    rows = {"jointly": (50, 52, 53), "videos_alone": (45, 44, 47)}
    add_rows(results, "5", "moving_shapes", rows)
    noise = {"kept_and_fixed": (40, 50, 45), "kept": (44, 43, 48)}
    noise |= {"fixed": (48, 41, 44), "fixed_small": (41, 48, 45)}
    add_rows(results, "positions", "ucf101_finetuning", noise, "clips")
    both = compare("5", results) + compare("positions", results)
    assert len(distinct(both)) == 4
    (papers,) = (x for x in distinct(both).values() if x.is_papers)
    assert 0.05 / 4 < papers.comparison.p < 0.05
    assert corrected(both) == {papers.runs}
