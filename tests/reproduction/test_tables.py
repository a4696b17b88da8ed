"""Rows of the tables: each is a config that works, at full size and shrunk."""

import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from sparse_tube_vit.config import InvalidConfig, differences, flags, validate
from sparse_tube_vit.models.tubes import count_tokens
from sparse_tube_vit.models.tubevit import check_tubes
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.reproduction.runs import Run
from sparse_tube_vit.reproduction.tables import PAPER, SCRATCH, TABLES, select
from sparse_tube_vit.training import finetuning
from sparse_tube_vit.training.optimizer import learning_rate

#: In the place of DINOv2.
IMAGE_VIT = Path(__file__).parents[1] / "golden/image_vits/hugging_face_dinov2"


def config_of(table, row, task="kinetics600"):
    return Run(table, TABLES[table].row(row), task, 0).config


def tokens(config):
    clip = config.clip.frames, config.clip.size, config.clip.size
    return count_tokens(make_tubes(config.model.tubes), clip)


@pytest.mark.parametrize("table", PAPER)
def test_every_row_is_a_config_that_works(table):
    first, *others = PAPER[table].tasks
    for task in ("kinetics600", first, *others[-1:]):
        for row in PAPER[table].rows:
            config = Run(table, row, task, 3).config
            validate(config)
            check_tubes(config)
            assert config.seed == 3
            assert row.evaluation in config.evaluations


@pytest.mark.parametrize("name", ["finetuning", "positions"])
def test_every_row_of_fine_tuning_is_a_config_that_works(name):
    for row in TABLES[name].rows:
        run = Run(name, row, "ucf101_finetuning", 0)
        config = run.config
        if run.takes_weights:
            config.init.weights = str(IMAGE_VIT)
            config.model.depth = 12
        config = finetuning.complete(config, data=False)
        pixels, steps = {"finetuning": (112, 330), "positions": (84, 120)}[name]
        if row.name in ("head_only", "last_4"):
            pixels = 168
        assert (config.clip.size, config.total_steps) == (pixels, steps)
        assert (config.optimizer.trained_layers is None) == (not row.argument)


def test_positions_differ_in_positions_alone():
    first, *others = (
        Run("positions", row, "ucf101_finetuning", 0).config.to_dict()
        for row in TABLES["positions"].rows
    )
    for config in others:
        changed = [key for key, _, _ in differences(first, config)]
        assert changed and {*changed} <= {"model.positions", "model.position_gain"}


@pytest.mark.parametrize("table", TABLES)
def test_names_are_of_rows(table):
    names = [row.name for row in TABLES[table].rows]
    assert len({*names}) == len(names)
    assert {name for claim in TABLES[table].claims for name in claim} <= {*names}
    assert {row.after for row in TABLES[table].rows} - {""} <= {*names}
    with pytest.raises(InvalidConfig, match=re.escape(f"rows: {names[0]}")):
        TABLES[table].row("no such row")


def test_directions_are_those_of_the_papers_figures():
    for table in PAPER.values():
        for better, worse in table.directions:
            above, below = table.row(better).paper, table.row(worse).paper
            if above is not None and below is not None:
                assert above > below, (table.title, better, worse)
    # Those that our runs reverse, too.
    assert ("2d_patches", "videos_alone") in PAPER["5"].directions
    assert PAPER["7e"].directions == PAPER["7e"].claims
    assert len(PAPER["14"].directions) == 5 + 2  # two rows are equal
    assert PAPER["twice"].directions == PAPER["twice"].claims


def test_the_full_size_is_the_papers():
    config = config_of("5", "jointly")
    assert (config.model.depth, config.model.width) == (24, 1024)
    assert (config.clip.frames, config.clip.fps, config.clip.size) == (64, 15, 224)
    assert tokens(config) == 1176
    assert {s.batch_size for s in config.streams.values()} == {256}
    assert config.total_steps == 300_000
    assert config_of("7a", "fixed").model.width == 768
    created = config_of("6", "last_8_gate")
    assert (created.model.depth, created.model.width) == (32, 1280)
    assert (created.model.gate_after, created.optimizer.trained_layers) == (24, 8)
    assert config_of("6", "last_4").model.gate_after is None
    assert config_of("6", "head").optimizer.trained_layers == 0
    assert config_of("9", "1_layer").optimizer.trained_layers == 1


@pytest.mark.parametrize(
    "name, row, own",
    [
        ("kinetics.py:classes=600", ("7a", "fixed"), {"model.tubes"}),
        ("kinetics.py:classes=600,variant=L", ("5", "jointly"), {"model.tubes"}),
        (
            "kinetics.py:classes=600,streams=video",
            ("figure4", "1_video"),
            {"model.tubes"},
        ),
        ("scale_up.py:trained=all", ("6", "everything"), {"init.weights"}),
    ],
)
def test_the_full_size_is_that_of_the_config_of_its_own(name, row, own):
    config = flags.read([f"--config=configs/{name}"])
    given = config_of(*row)
    found = differences(config.to_dict(), given.to_dict())
    added = {f"evaluations.{name}" for name in given.evaluations}
    added -= {f"evaluations.{name}" for name in config.evaluations}
    changed = {key for key, _, _ in found} - added
    assert changed == own
    assert make_tubes(given.model.tubes) == make_tubes(config.model.tubes)


def test_a_small_task_has_half_the_frames_and_smaller_strides():
    tubes = make_tubes(config_of("7b", "4", "moving_shapes").model.tubes)
    assert [tube.kernel for tube in tubes] == [
        (4, 8, 8),
        (8, 4, 4),
        (2, 12, 12),
        (1, 16, 16),
    ]
    assert [tube.stride for tube in tubes] == [
        (8, 16, 16),
        (3, 16, 16),
        (8, 16, 16),
        (16, 16, 16),
    ]
    assert [tube.offset for tube in tubes] == [
        (0, 0, 0),
        (2, 4, 4),
        (0, 8, 8),
        (0, 0, 0),
    ]
    (dense,) = make_tubes(config_of("5", "inflated_3d", "ucf101").model.tubes)
    assert (dense.kernel, dense.stride) == ((2, 16, 16), (2, 16, 16))


@pytest.mark.parametrize("table", ["5", "7b", "7c"])
@pytest.mark.parametrize("task", SCRATCH)
def test_windows_of_a_small_task_lie_within_the_frame(table, task):
    for row in TABLES[table].rows:
        config = config_of(table, row.name, task)
        clip = config.clip.frames, config.clip.size, config.clip.size
        for tube in make_tubes(config.model.tubes):
            ends = tube.windows(clip)[..., 1:] + tube.kernel[1:]
            assert ends.max() <= config.clip.size, (row.name, tube)


@pytest.mark.parametrize("task", ["kinetics600", *SCRATCH])
def test_2d_patches_make_about_as_many_tokens_as_the_four_tubes(task):
    config = config_of("5", "2d_patches", task)
    (tube,) = make_tubes(config.model.tubes)
    assert tube.kernel == (1, 16, 16)
    a_frame = (config.clip.size // 16) ** 2
    main = tokens(config_of("5", "jointly", task))
    assert abs(tokens(config) - main) <= a_frame


def test_2d_patches_at_full_size_make_exactly_as_many_tokens():
    config = config_of("5", "2d_patches")
    assert make_tubes(config.model.tubes)[0].stride == (11, 16, 16)
    assert tokens(config) == tokens(config_of("5", "jointly"))


@pytest.mark.parametrize("task", ["kinetics600", *SCRATCH])
def test_more_tokens_in_evaluation_come_near_the_papers_multiples(task):
    config = config_of("7d", "559", task)
    clip = (config.clip.frames, config.clip.size, config.clip.size)
    counts = []
    for row in TABLES["7d"].rows:
        scale = config.evaluations[row.evaluation].stride_scale
        tubes = [t.restride(scale) for t in make_tubes(config.model.tubes)]
        counts.append(count_tokens(tubes, clip))
    assert counts[0] == tokens(config) and counts == sorted(counts)
    for count, paper in zip(counts, (559, 768, 1024, 1536), strict=True):
        assert count / counts[0] == pytest.approx(paper / 559, rel=0.15)


def test_remarks_have_the_tokens_that_small_tasks_have():
    most = [
        tokens(config_of("figure4", "0.8_joint", task))
        for task in TABLES["figure4"].tasks
    ]
    assert f"reach {' and '.join(map(str, most))}" in TABLES["figure4"].remark
    a, b, c = (tokens(config_of("figure4", f"{x}_video")) for x in (1.5, 1, 0.8))
    assert f"rows have {a}, {b:,} and {c:,}." in TABLES["figure4"].remark
    dense = f"{tokens(config_of('5', 'inflated_3d')):,} tokens at full size for 1,176"
    assert dense in TABLES["5"].remark
    dense, moving_shapes, ucf101 = (
        tokens(config_of("5", *of))
        for of in (("inflated_3d", "ucf101"), *(("jointly", task) for task in SCRATCH))
    )
    of_small = f"in small tasks {dense} for {moving_shapes} and {ucf101}."
    assert of_small in TABLES["5"].remark
    counts_14 = {
        task: [tokens(config_of("14", row.name, task)) for row in TABLES["14"].rows]
        for task in ("ucf101", "kinetics600")
    }
    small, full = (f"{min(n):,} to {max(n):,}" for n in counts_14.values())
    assert f"{small} on ucf101, {full} at full size" in TABLES["14"].remark
    for task, words in (
        (
            "ucf101",
            "{3}, {4} and {5} times on UCF101, by strides of {0}, {1} and {2} of",
        ),
        (
            "moving_shapes",
            "{3}, {4} and {5} times on moving_shapes, by {0}, {1} and {2}.",
        ),
    ):
        config = config_of("5", "jointly", task)
        clip = config.clip.frames, config.clip.size, config.clip.size
        tubes = make_tubes(config.model.tubes)
        more = ("tokens_768", "tokens_1024", "tokens_1536")
        scales = [config.evaluations[name].stride_scale for name in more]
        counts = [count_tokens([t.restride(s) for t in tubes], clip) for s in scales]
        times = [f"{n / tokens(config):.1f}" for n in counts]
        assert words.format(*scales, *times) in TABLES["7d"].remark


@pytest.mark.parametrize("table, waits", [("6", 0), ("8", 60), ("9", 0)])
def test_rows_from_an_image_vit_train_what_is_fresh_alone_for_as_long(table, waits):
    rows = [row for row in TABLES[table].rows if row.big]
    configs = [config_of(table, row.name, "ucf101_image_vit") for row in rows]
    assert {config.optimizer.head_steps for config in configs} == {waits}
    if waits:
        total = configs[0].total_steps
        assert f"first {waits} of {total} steps" in TABLES[table].remark


def test_a_small_tasks_gate_moves_as_far_as_its_remark_says():
    for task, most in (("ucf101_image_vit", "0.12"), ("kinetics600", "0.25")):
        config = config_of("6", "last_8_gate", task)
        rates = jax.vmap(learning_rate(config))(np.arange(config.total_steps))
        assert f"{float(rates.sum()):.2f}" == most and most in TABLES["6"].remark


def test_remarks_tell_of_windows_past_the_frame():
    def past(row, tube):
        """Tokens of a tube with a window that lies outside the frame at full size."""
        tube = make_tubes(config_of("7c", row).model.tubes)[tube]
        return (tube.windows((64, 224, 224))[..., 1:] >= 224).any((1, 2)).sum()

    counts = {row: past(row, 2) for row in ("2xT", "2xS", "4xT", "4xS", "4xST")}
    assert counts == {"2xT": 0, "2xS": 28, "4xT": 0, "4xS": 52, "4xST": 28}
    assert not any(past(row, 0) for row in counts)
    for words in ("28 of its 196 tokens with 2xS and 4xST, in 52 with 4xS",):
        assert words in TABLES["7c"].remark
    strides = [
        make_tubes(config_of("7c", row, "ucf101").model.tubes)[0].stride[1:]
        for row in ("none", "2xT", "4xT", "2xS", "4xST", "4xS")
    ]
    assert strides == [(24, 24)] * 3 + [(24, 22)] * 2 + [(22, 22)]
    main, shared = (config_of("7e", row, "ucf101") for row in ("main", "separate"))
    strides = [make_tubes(c.model.tubes)[1].stride[1:] for c in (main, shared)]
    assert strides == [(20, 20), (24, 24)]


def test_created_tubes_reach_past_the_clip_as_remarked():
    for row, table in itertools.product(("small", "head"), ("6", "9")):
        small = config_of(table, row, "ucf101_image_vit")
        clip = small.clip.frames, small.clip.size, small.clip.size
        assert [t.past(clip) for t in make_tubes(small.model.tubes)] == [(0, 0, 0)] * 4
        full = config_of(table, row)
        clip = full.clip.frames, full.clip.size, full.clip.size
        past = {}
        for tube in make_tubes(full.model.tubes):
            last = tube.windows(clip).max(1) + tube.kernel
            past[tube.kernel] = (last > clip).any(1).sum(), len(last)
        assert past.pop((16, 4, 4)) == ((56, 392) if row == "head" else (0, 392))
        assert not any(tokens for tokens, _ in past.values())


def test_an_image_vit_is_trained_as_configs_finetune_does():
    config = config_of("8", "0", "ucf101_image_vit")
    recipe = Run(
        "finetuning", TABLES["finetuning"].row("everything"), "ucf101_finetuning", 0
    ).config
    recipe.init.weights, recipe.model.depth = str(IMAGE_VIT), config.model.depth
    recipe = finetuning.complete(recipe, data=False)
    for section, names in {
        "model": ("positions", "position_gain", "pooling"),
        "init": ("positions", "inflate"),
        "optimizer": ("trunk_rate", "layer_decay", "video_tubes_rate", "weight_decay"),
    }.items():
        for name in names:
            assert config[section][name] == recipe[section][name], name


def test_rows_that_train_the_same_share_a_run():
    def name(table, row, task):
        return Run.of(table, TABLES[table].row(row), task, 0).name

    same = [("7a", "fixed"), ("7d", "1536"), ("7f", "10x10"), ("figure4", "1_joint")]
    assert {name(*row, "ucf101") for row in same} == {"5_jointly"}
    assert name("7e", "separate", "ucf101") == name("7c", "none", "ucf101") == "7b_4"
    assert name("7a", "learned", "ucf101") == "7a_learned"
    assert name("7e", "main", "ucf101") == "5_jointly"
    assert name("twice", "jointly", "moving_shapes") == "5_jointly"
    assert name("twice", "jointly_twice", "moving_shapes") == "twice_jointly_twice"
    # Table 5 has L at full size, the others B.
    assert name("7a", "fixed", "kinetics600") == "images_jointly"
    assert name("9", "small", "kinetics600") == "9_small"
    views = config_of("7a", "fixed", "ucf101").evaluations.views_10x10
    assert (views.temporal_views, views.spatial_views) == (10, 10)
    assert "views_10x10" not in config_of("7a", "fixed", "moving_shapes").evaluations


def test_tables_and_rows_are_chosen_by_name():
    rows = select(["5:jointly", "7e", "5:videos_alone", "5:jointly"])
    names = {table: [row.name for row in chosen] for table, chosen in rows.items()}
    assert names == {
        "5": ["jointly", "videos_alone"],
        "7e": ["interpolated", "separate", "main"],
    }
    with pytest.raises(InvalidConfig, match=r"no table '7g'; tables: 5, images"):
        select(["7g"])
    with pytest.raises(InvalidConfig, match="no row 'joint'"):
        select(["5:joint"])
