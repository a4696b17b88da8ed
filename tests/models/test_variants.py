import math

import jax
import numpy as np
import pytest

from sparse_tube_vit.config import default_config, stream
from sparse_tube_vit.models.tubes import InvalidTube, NoImageTube, Tube, count_tokens
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.models.variants import (
    SHAPES,
    STRIDES,
    TUBE_SETS,
    UnknownTubes,
    make_tubes,
)

CLIP = (32, 224, 224)


def test_the_main_set_is_table_12():
    assert make_tubes("main") == (
        Tube((8, 8, 8), (16, 32, 32), (0, 0, 0), (2, 1, 1)),
        Tube((16, 4, 4), (6, 32, 32), (4, 8, 8), (1, 2, 2)),
        Tube((4, 12, 12), (16, 32, 32), (0, 16, 16)),
        Tube((1, 16, 16), (32, 16, 16)),
    )


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_sets_by_their_number_of_tubes(number):
    tubes = make_tubes(str(number))
    assert len(tubes) == number == len(set(tubes))
    assert count_tokens(tubes, (1, 224, 224)) == 196
    # No two tubes start at the same place: they see different parts of a clip.
    if number > 2:
        assert len({tube.centres(CLIP)[0].tobytes() for tube in tubes}) == number


# Every row of table 14. Those without (a), 2-D patches, cannot read images.
@pytest.mark.parametrize(
    "row, reads_images",
    [
        ("a.iv+b.v+f.iv", True),
        ("c.iv+e.v+g.iv", False),
        ("a.iv+e.v+g.iv", True),
        ("b.iv+e.v+g.iv", False),
        ("a.iv+d.v+e.iv+h.v", True),
        ("a.iv+b.v+c.iv+h.v", True),
        ("a.iv+d.v+e.iv+f.v", True),
    ],
)
def test_sums_as_table_14_writes_them(row, reads_images):
    tubes = make_tubes(row)
    if reads_images:
        assert count_tokens(tubes, (1, 224, 224)) == 196
    else:
        with pytest.raises(NoImageTube):
            count_tokens(tubes, (1, 224, 224))


def test_names_as_a_command_line_gives_them():
    assert make_tubes(4) == TUBE_SETS["4"]
    assert make_tubes("a.iv + e.v") == make_tubes("a.iv+e.v")


def test_images_must_fit_where_there_are_any():
    config = default_config()
    config.model.tubes = "dense_3d"
    make_model(config, {"head": 3})
    config.streams.image = stream(kind="image", dataset="", head="head", batch_size=1)
    with pytest.raises(NoImageTube):
        make_model(config, {"head": 3})


def test_shapes_and_strides_are_those_of_table_14():
    assert SHAPES == {
        "a": (1, 16, 16),
        "b": (4, 32, 32),
        "c": (4, 4, 4),
        "d": (4, 12, 12),
        "e": (8, 8, 8),
        "f": (16, 4, 4),
        "g": (16, 16, 16),
        "h": (32, 8, 8),
    }
    assert STRIDES == {
        "i": (4, 16, 16),
        "ii": (8, 8, 8),
        "iii": (8, 32, 32),
        "iv": (16, 16, 16),
        "v": (32, 32, 32),
    }


def test_a_sum_is_shape_and_stride_of_table_14():
    assert make_tubes("h.ii+d.iii") == (
        Tube((32, 8, 8), (8, 8, 8)),
        Tube((4, 12, 12), (8, 32, 32)),
    )


def test_dense_baselines_read_every_pixel_once():
    for name, tokens in (("dense_2d", 32 * 14 * 14), ("dense_3d", 16 * 14 * 14)):
        (tube,) = make_tubes(name)
        assert count_tokens([tube], CLIP) == tokens
        assert tokens * math.prod(tube.kernel) == math.prod(CLIP)


def test_the_charades_set_has_main_strides():
    assert [t.kernel for t in make_tubes("charades")] == [
        (16, 16, 16),
        (32, 8, 8),
        (4, 32, 32),
        (1, 16, 16),
    ]
    for tube, main in zip(TUBE_SETS["charades"], TUBE_SETS["main"], strict=True):
        assert (tube.stride, tube.offset) == (main.stride, main.offset)
    assert count_tokens(make_tubes("charades"), (128, 224, 224)) > 1500


@pytest.mark.parametrize(
    "tubes, message",
    [
        ("mian", "There is no set of tubes 'mian'; there are main, 1"),
        ("a.iv+x.v", "a.iv\\+x.v"),
        ("a.iv+", "shapes a, b"),
        ([{"kernel": (1, 2, 2)}], "neither the name of a set"),
        ((), "expected a tuple of dicts"),
        ({"kernel": (1, 2, 2), "stride": (1, 2, 2)}, "expected a tuple of dicts"),
        ([{"kernel": 4, "stride": (1, 2, 2)}], "three whole numbers"),
        ([{"kernel": (1, 2, 2), "stride": (1, 2, 2), "channels": 4.0}], "channels 4.0"),
        (
            [{"kernel": (8, 4, 4), "stride": (6, 4, 4), "space_to_depth": (4, 1, 1)}],
            "does not divide",
        ),
    ],
)
def test_unknown_tubes(tubes, message):
    with pytest.raises(UnknownTubes, match=message):
        make_tubes(tubes)


def test_every_key_of_the_model_reaches_it():
    config = default_config()
    config.model.update(
        depth=3,
        width=48,
        mlp_dim=96,
        heads=4,
        kernels="interpolated",
        tubes="4",
        positions="learned",
        pooling="mean",
        dropout=0.1,
        stochastic_depth=0.2,
        new_layers=2,
        gate_after=1,
        gelu="erf",
        norm_epsilon=1e-12,
        dtype="bfloat16",
    )
    model = make_model(config, {"head": 3})
    for key, value in config.model.to_dict().items():
        if key != "tubes":
            place = model.options if hasattr(model.options, key) else model
            assert getattr(place, key) == value, key
    assert model.tubes == TUBE_SETS["4"] and model.clip == CLIP
    x = np.zeros((1, *CLIP, 3), np.uint8)
    out = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), x, method="features")[0]
    )
    assert out["pooled"].dtype == "bfloat16"
    config.model.update(tubes="main")  # whose tubes differ in windows a token
    with pytest.raises(InvalidTube, match="one kernel"):
        make_model(config, {"head": 3})
