"""docs/reproduction.md: the paper's figures beside ours, and two pictures."""

import itertools
import math
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from sparse_tube_vit.figures.canvas import new_figure, save
from sparse_tube_vit.reproduction.directions import (
    Direction,
    accuracies,
    compare,
    corrected,
    distinct,
)
from sparse_tube_vit.reproduction.runs import TASKS, Results, Run
from sparse_tube_vit.reproduction.statistics import (
    LEAST_SEEDS,
    REVERSE,
    SIGNIFICANCE,
    mean_and_deviation,
)
from sparse_tube_vit.reproduction.tables import TABLES, Table
from sparse_tube_vit.storage import write_whole

INTRODUCTION = """\
# The paper's tables, tested again

Written by `./launch/reproduce.sh` from the results of runs; do not edit it.

## What was found

{FINDINGS}

## How to read the tables

* Cells are Top-1 in percent: the paper's at its size; ours as mean ± standard deviation
  and, in brackets, each seed's, the tokens of a clip (in rows on images, of an image)
  and the minutes of the quickest run, where they were counted. Minutes are by the
  clock, on the device that the JSON files name, often beside other work: they do not
  compare rows. Runs are of different commits, which the JSON files name for
  {NAMED}.
* A direction is a claim "A above B": between rows that are next to each other by the
  paper's figures, and those that the paper, or we, speak of. It is tested by a paired
  two-sided t-test over three seeds or more. With p < 0.05 it is **confirmed** or, where
  the reverse is found, **not confirmed**; else it is not resolvable at this size. It is
  marked by † if p also passes Holm's correction for the number of tests, for the
  paper's directions and for ours apart. Fewer seeds are not tested, nor are rows that
  differ by as much in every seed ("equal" if by 0). A difference is of the seeds that
  both rows have. Beside p is that of Welch's unpaired test: seeds of two rows often
  share no more than the order of examples.
* The same seed gives other results on other processors or with other code:
  moving_shapes jointly has had 96.5, 95.0 and 93.5, then 97.1, 97.5 and 96.7, and now
  97.1, 95.0 and 95.6 by the same three seeds.
* With three seeds and rows that deviate by 3 points, a difference must reach 10.5 to be
  resolvable, and most of the paper's are smaller. What p leaves out: all seeds have the
  same test examples, and many rows share a run. One test example is 0.2% of
  moving_shapes, 0.5% of ucf101.
* There is no third split, and settings were chosen by looking at test clips: rate and
  steps of ucf101 [by seed 0 of
  videos_alone](measurements.md#the-papers-tables-at-a-small-scale), the steps for their
  time as well, and the recipe of fine-tuning [by seed 0 of
  everything](measurements.md#from-an-image-vit). Such rows may be a little high beside
  others.
* The word that opens a section is its TABLE for `./launch/reproduce.sh TABLE`.

## The tasks

Each step has 16 clips, and 32 images where there are images, unless said.

* moving_shapes: the embedded data, 24 classes of shape and motion (chance: 4.2%), whose
  6 shapes are the classes of its images. Clips of 16x64x64, 4 blocks of width 128, 1200
  steps, in which some seeds do not learn all that others do: look at the seeds.
* ucf101: 10 classes of UCF101 (BodyWeightSquats, HandstandPushups, HandstandWalking,
  JumpRope, JumpingJack, Lunges, PullUps, PushUps, TrampolineJumping, WallPushups),
  with 50 classes of Tiny-ImageNet, from scratch: 528 clips to train and 212 to test of
  split 1's, which are more, [encoded anew and cut to 6
  s](measurements.md#ucf101-10-classes-split-1-with-tiny-imagenet-50-classes), stored at
  128x96 pixels. Clips of 16x64x64, 4 blocks of width 192, 2000 steps. Chance is 10%.
* ucf101_directions: the same clips forwards and backwards, as 20 classes (chance: 5%).
* ucf101_image_vit: these classes, files of 176x132 pixels, from an image ViT of size S
  with patches of 14x14 (`--weights`), which the JSON files name. dinov2_small is
  DINOv2-small trained further for saliency ([its origin and
  SHA-256](measurements.md#from-an-image-vit)). Clips of 16x84x84, 8 images a step: 120
  steps, and 240 of the large models of tables 6 and 9. Their small model is
  that of ucf101, on these files and clips, with strides of a half, a rate of 1e-3 and
  1200 steps.
* ucf101_finetuning: these files by `configs/finetune.py` from such a ViT, 330 steps;
  jointly with 16 images a step.

All else of a run is `configs/reproduction.py`, whose full size is the paper's:
`./launch/reproduce.sh --full TABLE` prints its commands. Small ones have clips of a
quarter of the frames (16 for 64), half the frames of kernels and strides, two at least
in kernels of several, and smaller strides in space; RandAugment gives way to crops of
80 to 100% of a frame on moving_shapes, of 35 to 100% and colour jitter on UCF101;
learning rate, weight decay, Adam's second moment and the average of parameters are
those of a short run.

## What is ours, and not the paper's

The paper is silent, and we chose: the gradient is clipped at a norm of 1; random crops
cover 30 to 100% of a frame; losses of videos and images weigh the same; weight decay is
decoupled from Adam; pooling is attention by a learned probe without an MLP; RandAugment
is without Cutout; images are evaluated by a central crop of their short side. Created
models train for 50,000 steps, as the paper's from Ti to B, 2,000 of them warm-up;
pooling trains with the head; table 9's gate is in its rows of some layers and of
everything. images_first and inflated_3d train twice for 300,000 steps. Where widths
have no whole ratio, the first channels of the windows are kept; windows are added along
the axes by which the tubes read the most of the clip.

The paper's B has 90.9 in its main result and 85.4 at most in the ablations (tables 7
and 8), 84.5 with the main tubes, on 559 tokens; ours are on 64 frames in all tables,
1,176 tokens (32 frames make 539).

For Charades and Something-Something V2, in `configs/`: dropout acts after the
embedding, after attention, in and after the MLP; mixup pairs neighbours of a batch, by
one lambda for all; the sigmoid loss is the mean over classes, whose smoothing goes to
1/2; Charades' labels are those of the whole video (`streams.video.labels`).

Small runs also have batches of 16 for 256, float32 for bfloat16, 2x1 views on
moving_shapes and 2x3 on UCF101 for 4x3, no flips on moving_shapes, and from scratch
twice as many images as clips, where the paper has as many of each.
"""


def write(results: Results, path) -> None:
    """Writes the document, and its pictures beside the results.

    Args:
        results: Results of the runs.
        path: The document.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    directions = {number: compare(number, results) for number in TABLES}
    everything = [*itertools.chain.from_iterable(directions.values())]
    kept = corrected(everything)
    findings = "\n".join([*_run(results), *_findings(everything, kept)])
    introduction = INTRODUCTION.replace("{FINDINGS}", findings)
    lines = [introduction.replace("{NAMED}", _with_commit(results))]
    for number, table in TABLES.items():
        lines += _section(number, table, results, directions[number], kept)
        if number in PICTURES and (figure := PICTURES[number].draw(results)):
            target = Path(results.directory) / f"{PICTURES[number].name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            save(figure, target)
            caption = PICTURES[number].caption
            lines += [f"![{caption}]({os.path.relpath(target, path.parent)})", ""]
    if outdated := results.outdated():
        lines += ["", "Left out, as their config has changed: " + ", ".join(outdated)]
    write_whole(path, ("\n".join(lines).rstrip() + "\n").encode())


def _run(results):
    """Yields which tables have results, by task."""
    states = {"With three seeds": [], "In part": []}
    for task in TASKS:
        by_state = {}
        for number in TABLES:
            if state := _state(number, task, results):
                by_state.setdefault(state, []).append(number)
        for state, numbers in by_state.items():
            states[state].append(f"{task} ({', '.join(numbers)})")
    if not any(states.values()):
        yield "Nothing has been run."
        return
    for state, found in states.items():
        if found:
            yield _wrapped(f"{state}: {', '.join(found)}.") + "\n"
    yield "A task's empty cell has not been run."


def _state(number, task, results):
    """Returns how much of a table is run on a task; "" if nothing that is its own."""
    table = TABLES[number]
    if task not in table.tasks:
        return ""
    own = [row for row in table.rows if not _is_shared(number, row, task)]
    seeds = {
        row.name: len(accuracies(results, number, row, task)) for row in table.rows
    }
    # Of a table that is one run, in several evaluations, the first may be another's.
    begun = [row for row in own or table.rows[1:] if seeds[row.name]]
    if not begun:
        return ""
    return "With three seeds" if min(seeds.values()) >= LEAST_SEEDS else "In part"


def _with_commit(results):
    """Returns how many of the results name their commit."""
    stored = [result for task in TASKS for result in results.each(task)]
    return f"{sum(bool(x.get('commit')) for x in stored)} of the {len(stored)} results"


def _findings(directions, kept):
    """Yields how many directions are tested, and which of them are resolved."""
    for whose, papers in (("the paper's", True), ("our own", False)):
        found = [x for x in distinct(directions).values() if x.is_papers == papers]
        if not found:
            continue
        few = [x for x in found if x.comparison.p < SIGNIFICANCE]
        marked = sum(x.runs in kept for x in few)
        chance = SIGNIFICANCE * len(found)
        yield ""
        yield _wrapped(
            f"Of {whose} directions {len(found)} are tested. Holm's correction for "
            f"{len(found)} leaves {marked} (†); {len(few) - marked} more have p < "
            f"{SIGNIFICANCE} alone (by chance, {chance:.1f} of {len(found)} have). The "
            f"other {len(found) - len(few)} are not resolvable at this size. "
            "Differences are in points."
        )
        yield ""
        by_verdict = {}
        for x in few:
            where = f"{x.comparison.verdict.capitalize()}, {x.task}"
            text = f"{x.words} (`{x.table}`, {_difference(x, kept)})"
            by_verdict.setdefault(where, []).append(text)
        for where, texts in sorted(by_verdict.items()):
            text = f"* {where}: {'; '.join(texts)}."
            yield _wrapped(text, subsequent_indent="  ")


def _wrapped(text, **options):
    """Returns a paragraph in lines: a link's address may hold hyphens, and no break."""
    return textwrap.fill(text, 88, break_on_hyphens=False, **options)


def _section(number, table: Table, results, directions, kept) -> Iterator[str]:
    tasks = [
        task
        for task in table.tasks
        if any(accuracies(results, number, row, task) for row in table.rows)
    ]
    numbered = f"Table {number}: " if number[0].isdigit() else ""
    numbered = "Figure 4: " if number == "figure4" else numbered
    yield f"## {numbered}{table.title}\n"
    where = f"The paper: {table.model}. " if table.model else ""
    about = f"`{number}`. {where}{table.remark}"
    yield _wrapped(about) + "\n"
    if not tasks:
        yield "Not run yet.\n"
        return
    columns = [*(["paper"] if table.is_papers else []), *tasks]
    yield f"| row | {' | '.join(columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for row in table.rows:
        cells = [_cell(results, number, row, task) for task in tasks]
        if table.is_papers:
            cells.insert(0, "" if row.paper is None else f"{row.paper:g}")
        yield f"| {row.name} | {' | '.join(cells)} |"
    if shared := _shared(number, table, tasks):
        yield f"\nThe same runs: {shared}."
    if not table.directions:
        yield ""
        return
    whose = "the paper's direction" if table.is_papers else "direction"
    yield f"\n| {whose} | {' | '.join(tasks)} |"
    yield "|---" * (1 + len(tasks)) + "|"
    by_words = {}
    for x in directions:
        if x.task in tasks:
            by_words.setdefault(x.words, []).append(_verdict(x, kept))
    for words, verdicts in by_words.items():
        yield f"| {words} | {' | '.join(verdicts)} |"
    yield ""
    for x in directions:
        if x.comparison and x.comparison.verdict == REVERSE:
            tried = table.tried.get((*x.rows, x.task), "nothing further was tried.")
            text = f"Why the reverse of {x.words} on {x.task}, and what was tried:"
            yield _wrapped(f"{text} {tried}") + "\n"


def _shared(number, table, tasks) -> str:
    """Returns which rows are runs of other rows, in words."""
    rows_of = {}
    for row in table.rows:
        for task in tasks:
            if _is_shared(number, row, task):
                run = Run.of(number, row, task, 0)
                rows_of.setdefault(f"{run.table}:{run.row.name}", {})[row.name] = None
    return "; ".join(f"{', '.join(rows)} and {run}" for run, rows in rows_of.items())


def _is_shared(number, row, task):
    """Returns whether the run of a row has the name of another row."""
    run = Run.of(number, row, task, 0)
    return (run.table, run.row.name) != (number, row.name)


def _cell(results, number, row, task) -> str:
    """Returns mean, deviation, tokens and minutes of a row on a task."""
    found = accuracies(results, number, row, task)
    if not found:
        return ""
    mean, deviation = mean_and_deviation([*found.values()])
    spread = "" if math.isnan(deviation) else f" ± {deviation:.1f}"
    runs = [results.seeds(number, row, task)[seed] for seed in found]
    minutes = [run["minutes"] for run in runs if run["minutes"] is not None]
    took = f", {min(minutes):.1f} min" if minutes else ""
    evaluations = [run["evaluations"][row.evaluation] for run in runs]
    tokens = evaluations[0]["tokens"]
    if all("class_top1" in x for x in evaluations):
        right = 100 * mean_and_deviation([x["class_top1"] for x in evaluations])[0]
        tokens = f"class in either direction {right:.1f}; {tokens}"
    seeds = ", ".join(f"{x:.1f}" for x in found.values())
    seeds = seeds if len(found) > 1 else "1 seed"
    return f"{mean:.1f}{spread} ({seeds}; {tokens} tokens{took})"


def _verdict(direction: Direction, kept) -> str:
    if direction.comparison is None:
        return ""
    return f"{direction.comparison.verdict} ({_difference(direction, kept)})"


def _difference(direction, kept):
    """Returns the difference of a comparison with its p, if it is tested."""
    comparison = direction.comparison
    text = f"{comparison.difference:+.1f}"
    if direction.is_tested:
        mark = "†" if direction.runs in kept else ""
        p, unpaired = f"p = {comparison.p:.2g}{mark}", f"{comparison.unpaired:.2g}"
        return f"{text}, {p}, unpaired {unpaired}"
    return f"{text} in every seed" if comparison.seeds >= LEAST_SEEDS else text


def draw_tokens(results: Results) -> Figure | None:
    """Draws figure 4; returns None where no curve has two points."""
    number, table = "figure4", TABLES["figure4"]
    curves = {}
    for task in table.tasks:
        for row in table.rows:
            if found := accuracies(results, number, row, task):
                run = results.seeds(number, row, task)[min(found)]
                tokens = run["evaluations"][row.evaluation]["tokens"]
                what = "with images" if row.streams == "joint" else "videos alone"
                point = tokens, *mean_and_deviation([*found.values()])
                curves.setdefault((task, what), []).append(point)
    curves = {key: points for key, points in curves.items() if len(points) > 1}
    tasks = [*dict.fromkeys(task for task, _ in curves)]
    if not tasks:
        return None
    figure = new_figure(5 * len(tasks), 3.6)
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for (task, what), points in curves.items():
        ax = axes[tasks.index(task)]
        tokens, means, deviations = zip(*sorted(points), strict=True)
        deviations = [0 if math.isnan(d) else d for d in deviations]
        ax.errorbar(tokens, means, deviations, fmt="o-", capsize=3, label=what)
    for ax, task in zip(axes, tasks, strict=True):
        ax.set(title=task, xlabel="tokens of a clip", ylabel="Top-1, %")
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    return figure


def draw_joint(results: Results) -> Figure | None:
    """Draws table 5: seeds as dots, their mean as a line, the paper's as a ring.

    Returns None where no task has two rows.
    """
    number, table = "5", TABLES["5"]
    rows = [row for row in table.rows if row.evaluation == "video"]
    found = {
        task: [[*accuracies(results, number, row, task).values()] for row in rows]
        for task in table.tasks
    }
    found = {task: seeds for task, seeds in found.items() if sum(map(bool, seeds)) > 1}
    if not found:
        return None
    figure = new_figure(1.5 + 3 * len(found), 3.4)
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for ax, (task, by_row) in zip(axes, found.items(), strict=True):
        for y, (row, seeds) in enumerate(zip(rows, by_row, strict=True)):
            ax.plot(row.paper, y, "o", mfc="none", color="gray")
            if seeds:
                mean = mean_and_deviation(seeds)[0]
                ax.plot(seeds, [y] * len(seeds), "o", ms=4, color="C0")
                ax.plot([mean] * 2, [y - 0.3, y + 0.3], color="C0")
        ax.set(title=task, xlabel="Top-1 on videos, %", xlim=(0, 103))
        ax.set_yticks(range(len(rows)), [row.name.replace("_", " ") for row in rows])
        ax.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].plot([], [], "o", mfc="none", color="gray", label="the paper, at its size")
    axes[0].plot([], [], "o", ms=4, color="C0", label="a seed")
    axes[0].plot([], [], color="C0", label="their mean")
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return figure


class Picture(NamedTuple):
    """A picture below a table: its file's name, its caption and what draws it."""

    name: str
    caption: str
    draw: Callable[[Results], Figure | None]


#: By table.
PICTURES = {
    "5": Picture("joint", "Joint training beside its alternatives.", draw_joint),
    "figure4": Picture("tokens", "Accuracy against tokens in training.", draw_tokens),
}
