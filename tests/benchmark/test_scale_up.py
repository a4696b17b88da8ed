"""`benchmark scale_up`, for real, of small models."""

import re

import pytest

from sparse_tube_vit.benchmark import __main__ as command

TINY = ["--frames=20", "--size=32", "--batch=1", "--runs=1"]


@pytest.mark.slow
def test_a_step_of_the_last_layers(capsys):
    command.main(["scale_up", "--trained_layers=2", *TINY])
    (printed,) = capsys.readouterr().out.splitlines()
    assert printed.startswith("Ti to S, 20x32x32 (8 tokens), ")
    assert "of all 12 layers" in printed and "of the last 2 and the gate" in printed
    # Of 12 layers, backward as two passes: 10 layers of 12 save 20 parts of 36.
    saved = int(re.search(r"of FLOPs (\d+)%", printed)[1])
    assert 50 <= saved <= 56
