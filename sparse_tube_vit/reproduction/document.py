"""docs/reproduction.md: the paper's figures beside ours, and two pictures."""

import math
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from sparse_tube_vit.figures.canvas import new_figure, save
from sparse_tube_vit.reproduction.runs import TASKS, Results, Run
from sparse_tube_vit.reproduction.statistics import (
    LEAST_SEEDS,
    REVERSE,
    SIGNIFICANCE,
    Comparison,
    held,
    mean_and_deviation,
)
from sparse_tube_vit.reproduction.tables import TABLES, Row, Table
from sparse_tube_vit.storage import write_whole

INTRODUCTION = """\
# The paper's tables, tested again

Written by `./launch/reproduce.sh` from the results of runs; do not edit it.

## What was found

{FINDINGS}

## How to read the tables

* Rows are Top-1 in percent: the paper's at its size, ours with mean ± standard
  deviation, the seeds, the tokens of a clip and the minutes of the quickest run, where
  they were counted. Minutes are by the clock, on the device that the JSON files name,
  often beside other work: they do not compare rows. Seeds of a row may be of different
  commits, which the JSON files name for {NAMED} of the results.
* Compared are the rows that are next to each other by the paper's figures, and those
  that it speaks of. A direction is **confirmed** or **not confirmed**, which means that
  the reverse is found, by a paired two-sided t-test over three seeds or more, p < 0.05;
  else it is not resolvable at this size. Fewer seeds are not tested. Beside it is p of
  Welch's unpaired test: seeds of two rows share the order of examples, and often no
  more. p is of one comparison; those that Holm's correction for all of them leaves have
  a †.
* Three seeds of rows that deviate by 3 points resolve a difference of 10.5, and most of
  the paper's are smaller. p is of training's seeds: all have the same test examples,
  and many rows share a run. One test example is 0.2% of moving_shapes, 0.5% of ucf101.
* There is no third split: rate and steps of ucf101 were chosen by Top-1 of
  videos_alone, seed 0, on its test clips, and the recipe of fine-tuning by the same
  clips ([how](measurements.md#the-papers-tables-at-a-small-scale)). Such rows may be a
  little high beside those that were not chosen so.
* The word that opens a section is its TABLE for `./launch/reproduce.sh TABLE`.

## The tasks

Each step has 16 clips, and 32 images where there are images.

* moving_shapes: the embedded data, 24 classes of shape and motion (chance: 4.2%), whose
  6 shapes are the classes of its images. Clips of 16x64x64, 4 blocks of width 128, 1200
  steps, in which some seeds do not learn all that others do: look at the seeds.
* ucf101: 10 classes of UCF101 (BodyWeightSquats, HandstandPushups, HandstandWalking,
  JumpRope, JumpingJack, Lunges, PullUps, PushUps, TrampolineJumping, WallPushups),
  split 1, stored at 128x96 pixels, with 50 classes of Tiny-ImageNet, from scratch.
  Clips of 16x64x64, 4 blocks of width 192, 2000 steps. Chance is 10%.
* ucf101_directions: the same clips forwards and backwards, as 20 classes (chance: 5%).
* ucf101_image_vit: these classes, files of 176x132 pixels, from an image ViT of size S
  with patches of 14x14 (`--weights`), which the JSON files name. dinov2_small is
  DINOv2-small trained further for saliency ([its origin and
  SHA-256](measurements.md#from-an-image-vit)). Clips of 16x84x84, 8 images a step: 120
  steps, and 240 of the large models of tables 6 and 9. Their small one is ucf101's, on
  these files and clips, with strides of a half, a rate of 1e-3 and 1200 steps.
* ucf101_finetuning: these files by `configs/finetune.py` from such a ViT, 330 steps;
  jointly with 16 images a step.

All else of a run is `configs/reproduction.py`, whose full size is the paper's:
`./launch/reproduce.sh --full TABLE` prints its commands. Small ones have clips of a
quarter of the frames (16 for 64), half the frames of kernels and strides, two at least,
and smaller strides in space; RandAugment gives way to crops of 80 to 100% of a frame on
moving_shapes, of 35 to 100% and colour jitter on UCF101; learning rate, weight decay,
Adam's second moment and the average of parameters are those of a short run.

## What is ours, and not the paper's

The paper is silent, and we chose: the gradient is clipped at a norm of 1; random crops
cover 30 to 100% of a frame; losses of videos and images weigh the same; weight decay is
decoupled from Adam; pooling is attention by a learned probe without an MLP; RandAugment
is without Cutout; images are evaluated by a central crop of their short side. Created
models train for 50,000 steps, as the paper's from Ti to B, 2,000 of them warm-up;
pooling trains with the head; table 9's gate is in its rows of some layers and of
everything. images_first trains twice for 300,000 steps. Where widths have no whole
ratio, the first channels of neighbouring windows are kept.

The paper's B has 90.9 in its main result and 84.5 in the ablations (tables 7 and 8), on
559 tokens; ours are on 64 frames in all tables, 1,176 tokens (32 frames make 539).

Small runs also have batches of 16 for 256, float32 for bfloat16, 2x1 views on
moving_shapes and 2x3 on UCF101 for 4x3, no flips on moving_shapes, and from scratch
twice as many images as clips, of which the paper has as many.
"""


def write(results: Results, path) -> None:
    """Writes the document, and its pictures beside the results.

    Args:
        results: Results of the runs.
        path: The document.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    compared = {
        number: dict(compare(number, table, results, table.tasks))
        for number, table in TABLES.items()
    }
    tested = _tested(compared)
    ps = [comparison.p for _, comparison in tested]
    kept = {*sorted(ps)[: held(ps)]}
    findings = "\n".join([_run(results), "", *_findings(tested, kept)])
    introduction = INTRODUCTION.replace("{FINDINGS}", findings)
    lines = [introduction.replace("{NAMED}", _with_commit(results))]
    for number, table in TABLES.items():
        lines += _section(number, table, results, compared[number], kept)
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
    """Returns a sentence on the tables that have results, by task."""
    found = []
    for task in TASKS:
        names = [name for name in TABLES if _is_begun(name, task, results)]
        if names:
            found.append(f"{task} ({', '.join(names)})")
    names = ", ".join(found) or "nothing"
    text = f"Run, in part: {names}. An empty cell has not been run."
    return textwrap.fill(text, 88)


def _with_commit(results):
    """Returns how many of the results name their commit."""
    stored = [result for task in TASKS for result in results.each(task)]
    return f"{sum(bool(x.get('commit')) for x in stored)} of {len(stored)}"


def _is_begun(number, task, results):
    """Whether a table has a result on a task that is more than another table's row."""
    table = TABLES[number]
    if task not in table.tasks:
        return False
    rows = [row for row in table.rows if accuracies(results, number, row, task)]
    return len(rows) > 1 or any(not _is_shared(number, row, task) for row in rows)


def _tested(compared):
    """Returns the comparisons with enough seeds for a test, with their claims.

    Each once: rows of two tables may be the same runs.
    """
    tested = {}
    for number, claims in compared.items():
        for claim, by_task in claims.items():
            for task, comparison in by_task.items():
                if comparison and not math.isnan(comparison.p):
                    tested.setdefault((task, comparison), f"{claim} (`{number}`")
    return tested


def _findings(tested, kept):
    """Yields how many comparisons are tested, and which of them are resolved."""
    resolved = {}
    for (task, comparison), claim in tested.items():
        if comparison.p < SIGNIFICANCE:
            mark = "†" if comparison.p in kept else ""
            text = f"{claim}, {comparison.difference:+.1f}){mark}"
            where = f"{comparison.verdict.capitalize()}, {task}"
            resolved.setdefault(where, []).append(text)
    few, chance = sum(map(len, resolved.values())), SIGNIFICANCE * len(tested)
    yield textwrap.fill(
        f"Of the {len(tested)} directions that three seeds test, {few} have p < "
        f"{SIGNIFICANCE}; if nothing differed, {chance:.1f} would on average. Holm's "
        f"correction for {len(tested)} leaves {len(kept)} (†). The others are not "
        "resolvable at this size.",
        88,
    )
    if resolved:
        yield ""
    for where, claims in sorted(resolved.items()):
        text = f"* {where}: {'; '.join(claims)}."
        yield textwrap.fill(text, 88, subsequent_indent="  ")


def accuracies(results: Results, table: str, row: Row, task: str) -> dict[int, float]:
    """Returns Top-1 in percent of a row by seed."""
    return {
        seed: 100 * result["evaluations"][row.evaluation]["top1"]
        for seed, result in results.seeds(table, row, task).items()
        if row.evaluation in result["evaluations"]
    }


def _section(number, table: Table, results, compared, kept) -> Iterator[str]:
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
    yield textwrap.fill(about, 88, break_on_hyphens=False) + "\n"
    if not tasks:
        yield "Not run yet.\n"
        return
    theirs = any(row.paper is not None for row in table.rows)
    columns = [*(["paper"] if theirs else []), *tasks]
    yield f"| row | {' | '.join(columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for row in table.rows:
        cells = [_cell(results, number, row, task) for task in tasks]
        if theirs:
            cells.insert(0, "" if row.paper is None else f"{row.paper:g}")
        yield f"| {row.name} | {' | '.join(cells)} |"
    if shared := _shared(number, table, tasks):
        yield f"\nThe same runs: {shared}."
    if not compared:
        yield ""
        return
    direction = "the paper's direction" if theirs else "direction"
    yield f"\n| {direction} | {' | '.join(tasks)} |"
    yield "|---" * (1 + len(tasks)) + "|"
    for claim, by_task in compared.items():
        verdicts = [_verdict(by_task[task], kept) for task in tasks]
        yield f"| {claim} | {' | '.join(verdicts)} |"
    yield ""
    found = {x.verdict for by_task in compared.values() for x in by_task.values() if x}
    if REVERSE in found and table.tried:
        yield textwrap.fill(f"Where the reverse is found: {table.tried}", 88) + "\n"


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
    """Whether the run of a row has the name of another row."""
    run = Run.of(number, row, task, 0)
    return (run.table, run.row.name) != (number, row.name)


def compare(number, table, results, tasks):
    """Yields each direction of the paper in words, with its comparisons by task."""

    def of(name, task):
        return accuracies(results, number, table.row(name), task)

    def difference(pair, task):
        a, b = (of(name, task) for name in pair)
        return {seed: a[seed] - b[seed] for seed in a.keys() & b.keys()}

    for a, b in table.directions:
        yield f"{a} above {b}", {t: Comparison.of(of(a, t), of(b, t)) for t in tasks}
    for first, second in table.interactions:
        pairs = {t: (difference(first, t), difference(second, t)) for t in tasks}
        words = " more than ".join(f"{a} above {b}" for a, b in (first, second))
        yield words, {t: Comparison.of(*pair) for t, pair in pairs.items()}


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


def _verdict(comparison: Comparison | None, kept) -> str:
    if comparison is None:
        return ""
    about = f"{comparison.difference:+.1f}"
    if not math.isnan(comparison.p):
        mark = "†" if comparison.p in kept else ""
        about += f", p = {comparison.p:.2g}{mark}, unpaired {comparison.unpaired:.2g}"
    elif comparison.seeds >= LEAST_SEEDS:
        about += " in every seed"
    return f"{comparison.verdict} ({about})"


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
