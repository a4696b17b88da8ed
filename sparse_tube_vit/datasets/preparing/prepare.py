"""Prepares a data set, with progress and a summary."""

import collections
import functools
import os
import sys
import time

from sparse_tube_vit.datasets import manifest
from sparse_tube_vit.datasets.preparing import parallel
from sparse_tube_vit.datasets.preparing.plan import shards
from sparse_tube_vit.datasets.preparing.write import write

LEFT_OUT_SHOWN = 20


def prepare(builder, transcode=None, workers=None, beam=None) -> str:
    """Writes a data set unless it is there; returns what to tell of it.

    Args:
        builder: Of `datasets.encoded.Builder`.
        transcode: Applied to every clip; None stores files as they are.
        workers: Processes, None: one a core; 0: this one.
        beam: Options of the Beam pipeline that does the work instead.

    Raises: the errors of `write.write` and of `parallel`.
    """
    start = time.monotonic()
    run = functools.partial(_run, builder, workers, beam)
    if not write(builder, transcode, run):
        return (
            f"{builder.dataset}: already in {builder.directory}, left as it is"
            " (to prepare it again, delete that directory)"
        )
    seconds = time.monotonic() - start
    return "\n".join(
        [
            f"{builder.dataset}: written to {builder.directory} in {seconds:.1f} s",
            *contents(builder),
        ]
    )


def contents(builder) -> list[str]:
    """What a prepared data set holds and what was left out, in lines."""
    path = builder.directory / manifest.NAME
    return [
        *_counts(builder, manifest.read(path)),
        *(f"  note: {note}" for note in builder.listing.notes),
        *_left_out(manifest.read(path), path),
    ]


def _run(builder, workers, beam, plan) -> None:
    """Writes what is left of a plan, in processes of this machine or with Beam."""
    every = list(shards(plan))
    left = [shard for shard in every if not shard.finished()]
    total = sum(len(shard.examples) for shard in left)
    what = f"{builder.dataset}: {total} {builder.kind}s"
    if len(left) < len(every):
        there = len(every) - len(left)
        what += f" left; {there} of {len(every)} shards are there already"
    print(what, file=sys.stderr, flush=True)
    if beam is not None:
        parallel.on_beam(plan, beam)
    elif left:
        if workers is None:
            workers = os.cpu_count()
        with _Progress(total, f" {builder.kind}s") as progress:
            parallel.in_processes(left, min(workers, len(left)), progress.update)


class _Progress:
    """A bar on a terminal; elsewhere, now and then, a line that says the same."""

    LINE_EVERY_SECONDS = 30
    LINE = "{n_fmt} of {total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}]"

    def __init__(self, total: int, unit: str):
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit=unit, disable=None)
        self.total, self.unit, self.seen = total, unit, 0
        self.start = self.said = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def update(self, more: int) -> None:
        self.bar.update(more)
        self.seen += more
        now = time.monotonic()
        if self.bar.disable and now >= self.said + self.LINE_EVERY_SECONDS:
            self.said = now
            line = self.bar.format_meter(
                self.seen,
                self.total,
                now - self.start,
                unit=self.unit,
                bar_format=self.LINE,
            )
            print(line, file=sys.stderr, flush=True)


def _counts(builder, rows) -> list[str]:
    """The examples of each class by split, and a line for each split."""
    listing = builder.listing
    counts = {split: collections.Counter() for split in listing.splits}
    examples = collections.Counter()
    for row in rows:
        if row.status == manifest.OK:
            examples[row.split] += 1
            counts[row.split].update(row.label if builder.multi_label else [row.label])
    table = [["", *counts]]
    for name in listing.class_names:
        table.append([name, *(str(counts[split][name]) for split in counts)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *numbers in table:
        cells = (n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))
        lines.append(f"  {name.ljust(widths[0])}  {'  '.join(cells)}")
    for split, count in counts.items():
        if not examples[split]:
            lines.append(f"  note: no split {split}: none of its examples decodes")
            continue
        per_class = [count[name] for name in listing.class_names]
        lines.append(
            f"  {split}: {examples[split]} examples of {len(per_class)} classes,"
            f" {min(per_class)} to {max(per_class)} a class"
        )
    return lines


def _left_out(rows, path) -> list[str]:
    """What was left out and why, the first of them by name."""
    left_out = [row for row in rows if row.status != manifest.OK]
    if not left_out:
        return []
    lines = [f"  left out: {len(left_out)}"]
    lines += [f"    {row.finding}" for row in left_out[:LEFT_OUT_SHOWN]]
    if len(left_out) > LEFT_OUT_SHOWN:
        lines.append(f"    and {len(left_out) - LEFT_OUT_SHOWN} more, all in {path}")
    return lines
