"""Preparation of a data set, with progress and a summary."""

import collections
import functools
import sys
import time

from sparse_tube_vit.datasets import manifest, processes
from sparse_tube_vit.datasets.preparing import beam
from sparse_tube_vit.datasets.preparing.plan import shards
from sparse_tube_vit.datasets.preparing.progress import Progress
from sparse_tube_vit.datasets.preparing.write import write_dataset, write_shard
from sparse_tube_vit.distributed.cpu import usable_cores
from sparse_tube_vit.log import format_table

LEFT_OUT_SHOWN = 20


def prepare(builder, transcode=None, workers=None, beam_options=None) -> str:
    """Writes a data set unless it is there; returns a summary.

    Args:
        builder: The data set, a `builders.builder.Builder`.
        transcode: Applied to every clip; None stores files as they are.
        workers: Number of processes. None: one a core; 0: this one.
        beam_options: Options of an Apache Beam pipeline that writes it instead.

    Raises:
        DatasetError: Any error of `write.write_dataset`, `processes` and `beam`.
    """
    start = time.monotonic()
    run = functools.partial(_run, builder, workers, beam_options)
    if not write_dataset(builder, transcode, run):
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
    """Returns lines with the examples per class, and the files that were left out."""
    path = builder.directory / manifest.NAME
    rows = [*manifest.read(path)]
    return [
        *_counts(builder, rows),
        *_longer(rows),
        *(f"  note: {note}" for note in builder.listing.notes),
        *_left_out(rows, path),
    ]


def _run(builder, workers, beam_options, plan) -> None:
    """Writes the unfinished shards of a plan, in processes here or with Beam."""
    every = list(shards(plan))
    left = [shard for shard in every if not shard.finished()]
    total = sum(len(shard.examples) for shard in left)
    what = f"{builder.dataset}: {total} {builder.kind}s"
    if len(left) < len(every):
        there = len(every) - len(left)
        what += f" left; {there} of {len(every)} shards are there already"
    print(what, file=sys.stderr, flush=True)
    if beam_options is not None:
        beam.write_shards(plan, beam_options)
    elif left:
        workers = usable_cores() if workers is None else workers
        with Progress(total, f" {builder.kind}s") as progress:
            for _ in processes.run(write_shard, left, workers, progress.update):
                pass


def _counts(builder, rows) -> list[str]:
    """Returns a table of the examples per class and split, and a line per split."""
    listing = builder.listing
    counts = {split: collections.Counter() for split in listing.splits}
    examples = collections.Counter()
    for row in rows:
        if row.status == manifest.OK:
            examples[row.split] += 1
            counts[row.split].update(row.label if builder.multi_label else [row.label])
    table = [["", *counts]]
    for name in listing.class_names:
        table.append([name, *(counts[split][name] for split in counts)])
    lines = [f"  {line}" for line in format_table(table)]
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


def _longer(rows) -> list[str]:
    """Returns a line with the number of files that are longer than their clip."""
    count = sum(row.span is not None and row.status == manifest.OK for row in rows)
    if not count:
        return []
    return [
        f"  note: {count:,} files are longer than their clip: the seconds in the"
        " manifest's column span are used. --transcode stores these alone"
    ]


def _left_out(rows, path) -> list[str]:
    """Returns lines with the first files that were left out, and the reasons."""
    left_out = [row for row in rows if row.status != manifest.OK]
    if not left_out:
        return []
    lines = [f"  left out: {len(left_out)}"]
    lines += [f"    {row.printable}" for row in left_out[:LEFT_OUT_SHOWN]]
    if len(left_out) > LEFT_OUT_SHOWN:
        lines.append(f"    and {len(left_out) - LEFT_OUT_SHOWN} more, all in {path}")
    return lines
