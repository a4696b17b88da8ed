"""The paper's tables as rows of changes to one config, `configs/reproduction.py`."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

from sparse_tube_vit.config import MODEL, InvalidConfig
from sparse_tube_vit.models.variants import VARIANTS
from sparse_tube_vit.training import recipe


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: what it changes, and what the paper has for it.

    Attributes:
        name: Its name, without spaces.
        paper: Top-1 in percent by the paper; None where it gives none.
        streams: "joint", or one of "video" and "image" alone.
        tubes: `model.tubes`.
        as_many_tokens: Whether the tube, which reads single frames, reads as many as
            make about the number of tokens of the four tubes.
        stride_scale: Scale of the tubes' strides in training.
        changes: Values of other keys of the config by name, "model.positions".
        after: Row of the same table whose model it starts from.
        big: Whether the model has an image ViT's size: with an `after` it is created
            from that row's tubes and the ViT (paper 3.6), else it starts from the ViT.
        trained: Fraction of the blocks of `big`, the last ones, that train; 0: pooling
            and heads alone. None: everything.
        gate: Whether the tokens are added again after the frozen blocks of `big`.
        evaluation: Name of the evaluation in which the row is measured.
        steps: Steps of training, as a multiple of other rows'.
        argument: Argument of `configs/finetune.py`, for rows of fine-tuning.
    """

    name: str
    paper: float | None = None
    streams: str = "joint"
    tubes: str = "main"
    as_many_tokens: bool = False
    stride_scale: float = 1.0
    changes: Mapping[str, object] = dataclasses.field(default_factory=dict)
    after: str = ""
    big: bool = False
    trained: float | None = None
    gate: bool = False
    evaluation: str = "video"
    steps: int = 1
    argument: str = ""

    @property
    def training(self) -> "Row":
        """The row without what does not change its training: equal ones share a run."""
        return dataclasses.replace(self, name="", paper=None, evaluation="")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or figure of the paper.

    Attributes:
        title: What it compares.
        model: Variant and data set in the paper.
        variant: Variant of the TubeViT at full size.
        rows: Its rows.
        claims: Pairs (better, worse) of rows that the paper, or we, speak of.
        interactions: Pairs of pairs of rows: of the first pair, the paper finds the
            larger difference.
        tasks: Names of the small tasks that it is run on, see `runs.TASKS`.
        big: Variant of the image ViT at full size.
        evaluations: Evaluations beside "video" and "image", by name: the keys in which
            they differ from "video".
        remark: What a reader should know of our rows.
        tried: Why the reverse of a direction is found, and what was tried, by its rows
            (better, worse) and the task.
    """

    title: str
    model: str
    rows: tuple[Row, ...]
    claims: tuple[tuple[str, str], ...]
    tasks: tuple[str, ...]
    variant: str = "B"
    big: str = ""
    evaluations: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    remark: str = ""
    tried: Mapping[tuple[str, str, str], str] = dataclasses.field(default_factory=dict)
    interactions: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = ()

    @property
    def is_papers(self) -> bool:
        """Whether the paper gives figures for its rows."""
        return any(row.paper is not None for row in self.rows)

    @property
    def directions(self) -> tuple[tuple[str, str], ...]:
        """The claims, and (better, worse) of rows next to each other in the paper."""
        known = [row for row in self.rows if row.paper is not None]
        known.sort(key=lambda row: -row.paper)
        neighbours = [
            (a.name, b.name) for a, b in itertools.pairwise(known) if a.paper > b.paper
        ]
        return tuple(dict.fromkeys((*self.claims, *neighbours)))

    def row(self, name: str) -> Row:
        """Returns a row by its name.

        Raises:
            InvalidConfig: There is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        names = ", ".join(row.name for row in self.rows)
        raise InvalidConfig(f"There is no row {name!r} in {self.title}; rows: {names}.")


SCRATCH = ("moving_shapes", "ucf101")

#: Space-to-depth of table 7c, for the two tubes with a stride of 16, 32, 32.
_FACTORS = {
    "2xT": (2, 1, 1),
    "2xS": (1, 1, 2),
    "4xT": (4, 1, 1),
    "4xS": (1, 2, 2),
    "4xST": (2, 1, 2),
}


#: Rows of table 6 with the last 8 of H's 32 blocks.
_LAST_8 = {"after": "small", "big": True, "trained": 8 / 32}

#: Patches of DINOv2, as a tube's kernel.
PATCH = (1, 14, 14)


def _deep(factors):
    """Returns the four tubes, those with a stride of 16, 32, 32 with space-to-depth."""
    return (
        {"kernel": (8, 8, 8), "stride": (16, 32, 32), "space_to_depth": factors},
        {"kernel": (16, 4, 4), "stride": (6, 32, 32), "offset": (4, 8, 8)},
        {
            "kernel": (4, 12, 12),
            "stride": (16, 32, 32),
            "offset": (0, 16, 16),
            "space_to_depth": factors,
        },
        {"kernel": (1, 16, 16), "stride": (32, 16, 16)},
    )


def _shapes(tubes, paper):
    return Row(tubes, paper, streams="video", tubes=tubes)


#: Tables and figures of the paper by number, and others of `configs/reproduction.py`.
PAPER = {
    "5": Table(
        "Joint training against its alternatives",
        "L on K600",
        variant="L",
        rows=(
            Row("videos_alone", 85.6, streams="video"),
            Row("images", None, streams="image", evaluation="image"),
            Row("images_first", 90.4, streams="video", after="images"),
            Row("jointly", 91.5),
            Row("2d_patches", 87.6, tubes="image", as_many_tokens=True),
            Row("2d_images", streams="image", tubes="image", evaluation="image"),
            Row(
                "inflated_3d",
                88.4,
                streams="video",
                tubes="dense_3d",
                changes={"init.inflate": "central_frame"},
                after="2d_images",
            ),
        ),
        claims=(
            ("jointly", "videos_alone"),
            ("images_first", "videos_alone"),
            ("jointly", "images_first"),
            ("jointly", "2d_patches"),
            ("images_first", "inflated_3d"),
        ),
        tasks=SCRATCH,
        remark="images and 2d_images: accuracy on images, of the models that "
        "images_first and inflated_3d start from. 2d_patches: the image tube alone, "
        "on as many frames as make about the four tubes' number of tokens. "
        "inflated_3d: dense patches of 2x16x16, whose kernels are the image model's on "
        "one of the two frames: 6,272 tokens at full size for 1,176, in small tasks "
        "128 for 114 and 69. On moving_shapes, "
        "25% is the accuracy of a model that recognizes the shape, which images teach, "
        "and guesses which of four ways it moves.",
        tried={
            ("2d_patches", "videos_alone", "moving_shapes"): "its classes are motions, "
            "of which patches of single frames have nothing before the first layer; "
            "other settings were not tried.",
            ("images_first", "inflated_3d", "ucf101"): "dense patches make 128 tokens "
            "for 69. With 131 in evaluation alone, by strides of 0.78, [images_first "
            "has](measurements.md#the-papers-tables-at-a-small-scale) 35.4, 34.0 and "
            "34.4%, half of the way.",
        },
    ),
    "images": Table(
        "Images alone against jointly with videos (section 4)",
        "B, ImageNet",
        rows=(
            Row("images_alone", 78.1, streams="image", evaluation="image"),
            Row("jointly", 81.4, evaluation="image"),
        ),
        claims=(("jointly", "images_alone"),),
        tasks=SCRATCH,
        remark="Accuracy on images.",
        tried={
            ("jointly", "images_alone", "moving_shapes"): "images alone teach nearly "
            "all of it; nothing further was tried."
        },
    ),
    "6": Table(
        "Scaling up: what trains of the large model",
        "B's tubes in H, K600",
        big="H",
        rows=(
            Row("small"),
            Row("head", 85.6, after="small", big=True, trained=0),
            Row("last_4", 86.3, after="small", big=True, trained=4 / 32),
            Row("last_8", 86.8, **_LAST_8),
            Row("last_8_gate", 89.7, gate=True, **_LAST_8),
            Row("everything", 91.8, after="small", big=True, gate=True),
        ),
        claims=(
            ("last_4", "head"),
            ("last_8", "last_4"),
            ("last_8_gate", "last_8"),
            ("everything", "last_8_gate"),
        ),
        tasks=("ucf101_image_vit",),
        remark="Rows count blocks of 32; of 12, last_4 trains 2, last_8 3. With "
        "everything, the gate follows block 26 of 32, as in the paper's text. Small "
        "runs train the ViT by the rates of configs/finetune.py, and keep its "
        "positions beside the fixed ones: by these alone it does not learn in so few "
        "steps. The gate is 0 at first and Adam moves it by no more than about the "
        "rate a step, in all by 0.12 (0.25 at full size). At full size 56 of the 392 "
        "tokens of 16x4x4 reach past the frame in created models, in table 9, too; no "
        "others do, and none in small runs. In 240 steps no created model reaches the "
        "small one.",
    ),
    "9": Table(
        "Scaling up from Ti: what trains of the large model",
        "Ti's tubes in B, K600",
        variant="Ti",
        big="B",
        rows=(
            Row("small"),
            Row("head", 79.6, after="small", big=True, trained=0),
            Row("1_layer", 80.8, after="small", big=True, trained=1 / 12, gate=True),
            Row("4_layers", 81.1, after="small", big=True, trained=4 / 12, gate=True),
            Row("everything", 81.4, after="small", big=True, gate=True),
        ),
        claims=(
            ("1_layer", "head"),
            ("4_layers", "1_layer"),
            ("everything", "4_layers"),
        ),
        tasks=("ucf101_image_vit",),
        remark="Small runs have table 6's models: head, everything and small are the "
        "same runs. The gate is before the layers that train; with everything, it "
        "follows block 9 of 12, and block 8 with 4_layers.",
    ),
    "7a": Table(
        "Position embeddings",
        "B on K600",
        rows=(
            Row("none", 78.6, changes={"model.positions": "none"}),
            Row("learned", 79.2, changes={"model.positions": "learned"}),
            Row("no_stride", 77.7, changes={"model.positions": "fixed_no_stride"}),
            Row("fixed", 84.5),
        ),
        claims=(
            ("fixed", "none"),
            ("fixed", "learned"),
            ("fixed", "no_stride"),
            ("learned", "none"),
        ),
        tasks=SCRATCH,
        remark="Relative positions, by the paper 77.5 and below none at all, are not "
        "implemented: every block's attention would add a bias of tokens x tokens, "
        "which takes the place of splash attention, the kernel that is used on TPUs, "
        "by a slower one.",
        tried={
            ("none", "no_stride", "ucf101"): "positions without strides still tell a "
            "tube's tokens apart, in their order; 528 clips may be too few to learn "
            "without. By 4x3 views in the place of 2x3 [it "
            "stays](measurements.md#the-papers-tables-at-a-small-scale): 26.9 for 32.5 "
            "in the mean.",
        },
    ),
    "7b": Table(
        "Number of tubes",
        "B on K600",
        rows=(
            Row("1", 78.4, tubes="1"),
            Row("2", 81.5, tubes="2"),
            Row("4", 83.4, tubes="4"),
            Row("8", 85.4, tubes="8"),
        ),
        claims=(("2", "1"), ("4", "2"), ("8", "4"), ("8", "1")),
        tasks=SCRATCH,
        remark="The paper does not list its sets of one and eight; these are ours. "
        "Its rows take the same FLOPs, 70 to 74 G; ours differ in tokens, and with "
        "them in FLOPs: 784, 1,568, 1,176 and 2,058 tokens at full size. Small tasks "
        "scale strides above 16 pixels alone, so that the image tube's 16 stays; in "
        "moving_shapes all tubes then have 16. What is confirmed of more tubes may be "
        "of more tokens. 4 tubes have fewer tokens than 2 at full size, but more in "
        "small tasks: 114 and 69 for 64.",
    ),
    "7c": Table(
        "Space-to-depth",
        "B on K600",
        rows=(
            Row("none", 83.4, tubes="4"),
            *(
                Row(name, paper, tubes=_deep(_FACTORS[name]))
                for name, paper in (
                    ("2xT", 84.7),
                    ("2xS", 84.5),
                    ("4xT", 85.1),
                    ("4xS", 85.4),
                    ("4xST", 85.3),
                )
            ),
        ),
        claims=(
            ("2xT", "none"),
            ("2xS", "none"),
            ("4xT", "2xT"),
            ("4xS", "2xS"),
            ("4xST", "none"),
        ),
        tasks=SCRATCH,
        remark="With the tubes of 8x8x8 and 4x12x12, whose strides the factors divide. "
        "2xS has two windows across, one down. Of 4xT, the last tokens of 8x8x8 reach "
        "past the clip's end, where they read zeros: a quarter of them at full size, "
        "half in small tasks. At full size windows of 4x12x12 lie past the frame, in "
        "28 of its 196 tokens with 2xS and 4xST, in 52 with 4xS. Small tasks shorten "
        "strides until none does: on ucf101, those of 8x8x8 are 22 pixels for 24, "
        "across with 2xS and 4xST, both ways with 4xS.",
    ),
    "7d": Table(
        "More tokens in evaluation than in training",
        "B on K600",
        rows=tuple(
            Row(tokens, paper, evaluation=evaluation)
            for tokens, paper, evaluation in (
                ("559", 84.5, "video"),
                ("768", 84.9, "tokens_768"),
                ("1024", 84.6, "tokens_1024"),
                ("1536", 83.5, "tokens_1536"),
            )
        ),
        claims=(("768", "559"), ("559", "1536")),
        tasks=SCRATCH,
        evaluations={
            "tokens_768": {"stride_scale": 0.9},
            "tokens_1024": {"stride_scale": 0.8},
            "tokens_1536": {"stride_scale": 0.7},
        },
        remark="Rows are the paper's numbers of tokens, 1.4, 1.8 and 2.7 times those "
        "of training. Ours have 1.3, 1.9 and 2.5 times on UCF101, by strides of 0.87, "
        "0.78 and 0.7 of training's, and 1.2, 1.6 and 2.6 times on moving_shapes, by "
        "0.93, 0.9 and 0.7. Strides are whole multiples of space-to-depth's factors. "
        "Shorter ones put windows at other places than training's, too, and those that "
        "space-to-depth joins in a token at another distance.",
        tried={
            ("768", "559", "moving_shapes"): "[seed 0]"
            "(measurements.md#the-papers-tables-at-a-small-scale) lost 8.6 points with "
            "tokens that reach past the clip, 2.9 without them, which is the rule "
            "since, and 2.1 with windows of a token at training's distance, too.",
            ("1024", "559", "moving_shapes"): "as of 768 above 559, 8.3, 3.6 and 2.3 "
            "points.",
        },
    ),
    "7e": Table(
        "One kernel, interpolated, against one for every tube",
        "B on K600",
        rows=(
            Row(
                "interpolated",
                83.8,
                tubes="4",
                changes={"model.kernels": "interpolated"},
            ),
            Row("separate", None, tubes="4"),
            Row("main", 84.5),
        ),
        claims=(("main", "interpolated"), ("separate", "interpolated")),
        tasks=SCRATCH,
        remark="The paper's 84.5 is of its main tubes, two of which have "
        "space-to-depth. One kernel has one width: interpolated is without. So is "
        "separate, which differs in its kernels alone (83.4 in table 7b, which the "
        "paper does not set beside it). The shared kernel is 8x8x8, of which small "
        "tasks, with half the frames in kernels, have no tube. On ucf101 main's tube "
        "of 8x4x4 has strides of 20 pixels for 24.",
    ),
    "7f": Table(
        "Views in evaluation, temporal x spatial",
        "B on K600",
        rows=tuple(
            Row(views, paper, evaluation=f"views_{views}")
            for views, paper in (
                ("1x1", 82.8),
                ("4x1", 83.3),
                ("1x3", 83.6),
                ("4x3", 84.5),
                ("10x10", 84.7),
            )
        ),
        claims=(
            ("4x1", "1x1"),
            ("1x3", "1x1"),
            ("4x3", "4x1"),
            ("4x3", "1x3"),
            ("10x10", "4x3"),
        ),
        tasks=("ucf101",),
        evaluations={
            f"views_{t}x{s}": {"temporal_views": t, "spatial_views": s}
            for t, s in ((1, 1), (4, 1), (1, 3), (4, 3), (10, 10))
        },
    ),
    "8": Table(
        "New attention layers in a pretrained image ViT",
        "B on K600",
        big="B",
        rows=tuple(
            Row(str(n), paper, tubes="4", big=True, changes={"model.new_layers": n})
            for n, paper in ((0, 84.23), (1, 80.23), (2, 78.87), (4, 75.24), (8, 72.95))
        ),
        claims=(("0", "1"), ("1", "2"), ("2", "4"), ("4", "8"), ("0", "8")),
        tasks=("ucf101_image_vit",),
        remark="Four tubes without space-to-depth. Small runs are by the recipe of "
        "configs/finetune.py, without mixup: kernels inflated, positions kept, lower "
        "rates below, and new layers, pooling and heads alone for the first 60 of 120 "
        "steps. The paper trains everything from the start. Guessing has 10%: in so "
        "few steps 4 and 8 new layers learn little or nothing.",
    ),
    "14": Table(
        "Shapes of tubes",
        "K600",
        rows=(
            _shapes("a.iv+b.v+f.iv", 87.9),
            _shapes("c.iv+e.v+g.iv", 87.5),
            _shapes("a.iv+e.v+g.iv", 87.8),
            _shapes("b.iv+e.v+g.iv", 87.7),
            _shapes("a.iv+d.v+e.iv+h.v", 88.6),
            _shapes("a.iv+b.v+c.iv+h.v", 87.9),
            _shapes("a.iv+d.v+e.iv+f.v", 88.9),
        ),
        claims=(
            ("a.iv+d.v+e.iv+f.v", "a.iv+d.v+e.iv+h.v"),
            ("a.iv+d.v+e.iv+h.v", "a.iv+b.v+c.iv+h.v"),
            ("a.iv+d.v+e.iv+f.v", "c.iv+e.v+g.iv"),
        ),
        tasks=("ucf101",),
        remark="Videos alone: two of the sets have no tube for images. Not on "
        "moving_shapes, where the strides iv and v, 16 and 32 pixels, both become 16. "
        "Rows differ in tokens: 59 to 82 on ucf101, 1,558 to 1,764 at full size.",
        tried={
            ("a.iv+e.v+g.iv", "b.iv+e.v+g.iv", "ucf101"): "by 4x3 views in the place "
            "of 2x3 [it is gone](measurements.md#the-papers-tables-at-a-small-scale): "
            "35.8, 31.1 and 33.5% for 32.5, 34.9 and 34.9.",
        },
    ),
    "figure4": Table(
        "Tokens in training, with and without images",
        "B on K600",
        rows=tuple(
            Row(f"{scale:g}_{streams}", None, streams=streams, stride_scale=scale)
            for streams in ("joint", "video")
            for scale in (1.5, 1, 0.8)
        ),
        claims=(("1_joint", "0.8_joint"), ("1_video", "0.8_video")),
        interactions=((("1_video", "0.8_video"), ("1_joint", "0.8_joint")),),
        tasks=SCRATCH,
        remark="Rows are scales of the tubes' strides. The paper finds a drop past "
        "1,500 tokens, more so without images; at full size rows have 367, 1,176 and "
        "2,168. Small tasks reach 230 and 113: what they find of these strides is not "
        "about so many tokens, and its directions count as ours.",
    ),
    "twice": Table(
        "Table 5 with twice the steps: is the order the same?",
        "",
        variant="L",
        rows=(
            Row("videos_alone", streams="video"),
            Row("jointly"),
            Row("videos_alone_twice", streams="video", steps=2),
            Row("jointly_twice", steps=2),
        ),
        claims=(
            ("jointly", "videos_alone"),
            ("jointly_twice", "videos_alone_twice"),
        ),
        tasks=("moving_shapes",),
        remark="Not in the paper.",
    ),
    "directions": Table(
        "Clips forwards and backwards: is their direction learnt?",
        "",
        rows=(Row("videos_alone", streams="video"),),
        claims=(),
        tasks=("ucf101_directions",),
        remark="Not in the paper. Of the clips whose class is right, in whichever "
        "direction, guessing has half in the right direction. Seed 0, with strides of "
        "24 pixels (now 20), had 56 of 110 in the right one, and"
        " an image ViT that was fine-tuned on these clips, one seed, 129 of 257 "
        "([how](measurements.md#the-papers-tables-at-a-small-scale)): neither learns "
        "it. With direction at chance, other tables would have about half of their "
        "accuracy on ucf101, and are not run on this task. The motions of "
        "moving_shapes are what a single frame does not tell.",
    ),
}

#: Fine-tuning from random weights, of the model that an image ViT's files make.
_RANDOM = (
    {
        f"model.{name}": key.default
        for name, key in MODEL.items()
        if name not in ("attention", "remat", "scan") and key.default is not None
    }
    | {f"model.{name}": size for name, size in VARIANTS["S"].items()}
    | {
        "model.gelu": "erf",
        "model.positions": "learned",
        "model.position_gain": 0.0,
        "model.tubes": (
            *recipe.video_tubes(recipe.FRAMES, PATCH),
            recipe.image_tube(recipe.FRAMES, PATCH),
        ),
        "clip.frames": recipe.FRAMES,
        "clip.fps": recipe.FPS,
        "clip.size": recipe.PIXELS,
        "init.weights": "",
        "optimizer.learning_rate": 1e-3,
    }
)

#: Size and steps of rows of fine-tuning that compare settings alone.
_SHORT = {"clip.size": 84, "total_steps": 120}

_FINETUNING = Table(
    "Fine-tuning an image ViT on ten classes",
    "",
    rows=tuple(
        Row(name, evaluation="clips", argument=argument, changes=changes)
        for name, argument, changes in (
            ("everything", "", {}),
            ("jointly", "", {"streams.images.dataset": "image_folder/tiny_imagenet"}),
            ("head_only", "head_only", {}),
            ("last_4", "last=4", {}),
            ("head_only_112", "head_only", {"clip.size": 112}),
            ("last_4_112", "last=4", {"clip.size": 112}),
            (
                "image_tube",
                "",
                {"model.tubes": (recipe.image_tube(recipe.FRAMES, PATCH),)},
            ),
            ("random", "", _RANDOM),
        )
    ),
    claims=(
        ("last_4", "head_only"),
        ("last_4", "everything"),
        ("last_4", "last_4_112"),
        ("head_only", "head_only_112"),
        ("everything", "last_4_112"),
        ("everything", "image_tube"),
        ("everything", "random"),
        ("jointly", "everything"),
    ),
    tasks=("ucf101_finetuning",),
    remark="By configs/finetune.py, 330 steps of 16 clips. last_4 and head_only train "
    "pooling, head and the last four blocks, or none, of a model that has the ViT's "
    "patches alone, on 168 pixels, or 112. In the other rows all trains, on 112 "
    "pixels: four tubes, but in image_tube the patches alone. random: without weights, "
    "at a rate of 1e-3, by learned positions, and fixed ones by a gain from 0.",
)

_POSITIONS = Table(
    "Positions in fine-tuning an image ViT",
    "",
    rows=tuple(
        Row(name, evaluation="clips", changes=_SHORT | changes)
        for name, changes in (
            ("kept_and_fixed", {}),
            ("kept", {"model.positions": "learned"}),
            ("fixed", {"model.positions": "fixed"}),
            ("fixed_small", {"model.positions": "fixed", "model.position_gain": 0.02}),
        )
    ),
    claims=(
        ("kept_and_fixed", "kept"),
        ("kept_and_fixed", "fixed"),
        ("kept_and_fixed", "fixed_small"),
    ),
    tasks=("ucf101_finetuning",),
    remark="By configs/finetune.py, all trained, shortened: 120 steps at 84 pixels. "
    "kept_and_fixed: the default, positions of the ViT, and fixed ones by a gain from "
    "0, which so few steps hardly move. kept: without fixed ones. fixed: the ViT's are "
    "dropped. fixed_small: fixed ones alone, by a gain from 0.02.",
)

#: All tables; those of fine-tuning by configs/finetune.py are none of the paper.
TABLES = PAPER | {"finetuning": _FINETUNING, "positions": _POSITIONS}


def select(names: Iterable[str]) -> dict[str, tuple[Row, ...]]:
    """Returns the rows of tables, by the tables' numbers.

    Args:
        names: "5", all rows of table 5, or "5:jointly", one of them.

    Raises:
        InvalidConfig: There is no such table or row.
    """
    rows = {}
    for name in names:
        table, _, row = name.partition(":")
        if table not in TABLES:
            raise InvalidConfig(
                f"There is no table {table!r}; tables: {', '.join(TABLES)}."
            )
        found = (TABLES[table].row(row),) if row else TABLES[table].rows
        rows.setdefault(table, {}).update((row.name, row) for row in found)
    return {table: tuple(chosen.values()) for table, chosen in rows.items()}


def evaluations_of(table: str, row: Row, task: str) -> dict[str, Mapping]:
    """Returns the evaluations of the run of a row, which rows of other tables share.

    Args:
        table: Number of the row's table.
        row: The row.
        task: Name of the task, "kinetics600" for the full size.

    Returns:
        Keys in which each differs from the evaluation "video", by its name.
    """
    found = {}
    for number, other in TABLES.items():
        if any(
            shares_run(table, row, number, each, task)
            for each in other.rows
            if each.evaluation in other.evaluations
        ):
            found |= other.evaluations
    return found


def shares_run(table: str, row: Row, other_table: str, other: Row, task: str) -> bool:
    """Returns whether rows of two tables are the same run on a task."""
    a, b = TABLES[table], TABLES[other_table]
    if task == "kinetics600":
        if a.variant != b.variant or row.big and a.big != b.big:
            return False
    elif not {*a.tasks} & {*b.tasks} & {task}:
        return False
    return row.training == other.training
