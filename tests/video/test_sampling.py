import numpy as np
import pytest

from sparse_tube_vit.video import sampling
from sparse_tube_vit.video.conversion import Crop


def test_times_go_by_the_clock_and_short_videos_loop():
    times = sampling.clip_times(0.5, frames=4, fps=2.0, duration=10.0)
    np.testing.assert_allclose(times, [0.5, 1.0, 1.5, 2.0])
    looped = sampling.clip_times(0.0, frames=6, fps=2.0, duration=1.5)
    np.testing.assert_allclose(looped, [0, 0.5, 1.0, 0, 0.5, 1.0])


def test_random_starts_fill_what_room_there_is():
    rng = np.random.default_rng(0)
    starts = [sampling.random_start(rng, 16, 8.0, 5.0) for _ in range(500)]
    assert 0 <= min(starts) < 0.1 and 2.9 < max(starts) <= 3.0
    looped = [sampling.random_start(rng, 16, 8.0, 1.0) for _ in range(500)]
    assert 0 <= min(looped) < 0.1 and 0.9 < max(looped) < 1.0


def test_views_spread_from_the_first_start_to_the_last():
    clip = {"frames": 16, "fps": 8.0}
    np.testing.assert_allclose(
        sampling.spread_starts(4, **clip, duration=8.0), [0, 2, 4, 6]
    )
    np.testing.assert_allclose(sampling.spread_starts(1, **clip, duration=8.0), [3])
    np.testing.assert_allclose(
        sampling.spread_starts(2, **clip, duration=1.0), [0, 0.5]
    )


@pytest.mark.parametrize("views", [1, 2, 4, 10])
def test_views_differ_wherever_a_video_has_frames_enough(views):
    """In all lengths and rates: which frames a view shows, found by a loop."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, rate = int(rng.integers(views, 200)), rng.uniform(4, 60)
        clip = {"frames": int(rng.integers(2, 65)), "fps": rng.uniform(2, 30)}
        clip["duration"] = n / rate
        starts = sampling.spread_starts(views, **clip)
        assert starts.min() >= 0 and starts.max() < clip["duration"]
        shown = set()
        for start in starts:
            times = sampling.clip_times(start, **clip)
            shown.add(tuple(int(t * rate + 1e-6) for t in times))
        assert len(shown) == views, (n, rate, clip)


@pytest.mark.parametrize("height, width", [(240, 320), (320, 240), (40, 400), (3, 2)])
def test_random_crops_lie_inside_and_have_the_area_asked_for(height, width):
    rng = np.random.default_rng(0)
    areas, ratios, places = [], [], []
    for _ in range(300):
        c = sampling.random_crop(rng, height, width, 64, (0.3, 1.0))
        assert 0 <= c.top <= height - c.height and 0 <= c.left <= width - c.width
        assert min(c.height, c.width) >= 1
        assert (c.out_height, c.out_width) == (64, 64)
        areas.append(c.height * c.width / (height * width))
        ratios.append(c.width / c.height)
        room = height - c.height, width - c.width
        if all(room):
            places.append((c.top / room[0], c.left / room[1]))
    if (height, width) == (240, 320):
        assert 0.29 < min(areas) < 0.35 and 0.85 < max(areas) <= 1
        assert abs(np.mean(areas) - 0.6) < 0.06
        assert 0.74 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.35  # 3/4 to 4/3
        assert len(places) > 200
        assert (abs(np.mean(places, 0) - 0.5) < 0.1).all()
        assert np.min(places) < 0.05 and np.max(places) > 0.95


@pytest.mark.parametrize(
    "height, width, area, expected",
    [
        (40, 400, (0.3, 1.0), Crop(0, 173, 40, 53, 64, 64)),
        (400, 40, (0.3, 1.0), Crop(173, 0, 53, 40, 64, 64)),
        (360, 640, (1.0, 1.0), Crop(0, 80, 360, 480, 64, 64)),
    ],
)
def test_where_no_crop_fits_it_is_the_largest_central_one(
    height, width, area, expected
):
    """Of 4:3 or 3:4: all crops of the areas are higher or wider than the picture."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        assert sampling.random_crop(rng, height, width, 64, area) == expected


@pytest.mark.parametrize(
    "height, width, out", [(240, 320, (96, 128)), (9, 5, (173, 96))]
)
def test_the_shorter_side_becomes_the_size(height, width, out):
    c = sampling.whole_picture(height, width, 96)
    assert (c.height, c.width) == (height, width)
    assert (c.out_height, c.out_width) == out


@pytest.mark.parametrize("turned", [False, True])
def test_crops_spread_along_the_longer_side(turned):
    clip = np.arange(2 * 4 * 10 * 3).reshape(2, 4, 10, 3)
    if turned:
        clip = clip.swapaxes(1, 2)
    views = sampling.spread_crops(clip, 3, 4)
    assert views.shape == (3, 2, 4, 4, 3)
    for view, start in zip(views, (0, 3, 6), strict=True):
        part = clip[:, start : start + 4] if turned else clip[:, :, start : start + 4]
        np.testing.assert_array_equal(view, part)
    np.testing.assert_array_equal(sampling.spread_crops(clip, 1, 4)[0], views[1])
