"""Lines of classes over time hold the scores of the windows."""

import numpy as np

from sparse_tube_vit import figures


def test_the_classes_of_the_highest_probabilities_are_drawn():
    spans = [(0, 4), (2, 6), (4, 8)]
    scores = np.array([[0.9, 0.1, 0.0, 0.0], [0.4, 0.2, 0.4, 0], [0.05, 0.1, 0.8, 0]])
    names = ["walk", "sit", "$run_fast$", "_fly"]
    (ax,) = figures.timeline(spans, scores, names, "a_$b$.mp4", top=2).axes
    drawn = {line.get_label(): line for line in ax.lines}
    assert list(drawn) == ["walk", "$run_fast$"]  # by the time of their peaks
    for name, line in drawn.items():
        np.testing.assert_array_equal(line.get_xdata(), [2, 4, 6])
        np.testing.assert_allclose(line.get_ydata(), 100 * scores[:, names.index(name)])
    assert ax.get_xlim() == (0, 8) and ax.get_xlabel() == "seconds"
    bars = ax.collections[0].get_segments()
    assert [(a[0], b[0]) for a, b in bars] == spans


def test_long_times_are_of_a_clock():
    spans = [(t, t + 4) for t in range(0, 7200, 60)]
    figure = figures.timeline(spans, np.ones((len(spans), 1)), ["x"], "long.mp4")
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert "1:00:00" in labels and "30:00" in labels
