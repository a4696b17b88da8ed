"""Writes the shards of a plan, then the manifest and TFDS's description."""

import dataclasses
import hashlib
import os
from collections.abc import Callable

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from sparse_tube_vit.datasets import manifest
from sparse_tube_vit.datasets.builders.builder import Builder, ListedExample, load
from sparse_tube_vit.datasets.catalog import builder_class
from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.datasets.preparing.plan import (
    Shard,
    dataset_info,
    file_template,
    shards,
    unfinished,
    whole_files,
    write_plan,
)
from sparse_tube_vit.datasets.reading import INFO, check_features, unfinished_files
from sparse_tube_vit.datasets.times import ACTIONS, SPAN, span_in_file
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.storage import file_size
from sparse_tube_vit.video import inspection
from sparse_tube_vit.video.limits import ClipTooLarge, UndecodableClip
from sparse_tube_vit.video.transcode import Transcode

# Protobuf, in which TFDS's examples are, neither writes nor reads messages of 2 GiB.
RECORD_BYTES = 2**31 - 2**20


class Unfinished(DatasetError):
    """The runner returned before all shards were written."""


class NothingDecodes(DatasetError):
    """No example decodes."""


def write_dataset(
    builder: Builder,
    transcode: Transcode | None = None,
    run: Callable[[epath.Path], None] | None = None,
) -> bool:
    """Writes a data set, or the part that an earlier call left unwritten.

    Args:
        builder: The data set.
        transcode: Applied to every clip; None stores files as they are.
        run: Writes all `unfinished` shards of the plan it is given; by default
            `write_all`.

    Returns:
        True if the data set was written, False if it was there already.

    Raises:
        OtherPreparation: It was begun with other files or options.
        UnreadableFile: A listed file cannot be read.
        UnwritableOutput: The disk is full, or the file system refuses otherwise.
        Unfinished: `run` returned before all shards were written.
        NothingDecodes: No example decodes.
    """
    prepared = builder.directory / INFO
    written = False
    if not prepared.exists():
        try:
            plan = write_plan(builder, transcode)
            (run or write_all)(plan)
            _finish(builder, plan)
            written = True
        except Exception:
            # Another process has finished it, and removed files that this one still
            # used.
            if not prepared.exists():
                raise
    _clear(builder.directory)
    return written


def write_all(plan) -> None:
    """Writes all unfinished shards of a plan, one by one in this process."""
    for shard in unfinished(plan):
        write_shard(shard)


def write_shard(shard: Shard, count: Callable[[], None] = lambda: None) -> None:
    """Writes a shard's file of records, then its part of the manifest.

    An example that does not decode is left out of the records; its row gives the
    reason. A shard that another process has written meanwhile is left as it is.

    Args:
        shard: The shard.
        count: Called after every example.

    Raises:
        UnreadableFile: A listed file cannot be read.
        UnwritableOutput: The file system refuses a file.
    """
    if shard.finished():
        for _ in shard.examples:
            count()
        return
    builder = builder_class(shard.builder)
    check_features(shard.directory)
    features = tfds.features.FeaturesDict.from_config(shard.directory)
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    kind = "image" if "image" in features else "video"
    labels = "labels" if "labels" in features else "label"
    rows = []
    with whole_files(shard.directory) as scratch:
        path = os.fspath(scratch / shard.name)
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        for example in shard.examples:
            encoded = load(builder, example.source)
            row, stored = _inspect(shard, example, encoded, kind)
            if row.status == manifest.OK:
                values = {"id": example.id, labels: example.label, kind: stored}
                if SPAN in features:
                    cut = shard.transcode is not None
                    values[SPAN] = np.array(() if cut else row.span or (), np.float32)
                if ACTIONS in features:
                    actions = [
                        (features[labels].feature.str2int(name), start, end)
                        for name, start, end in example.actions
                    ]
                    values[ACTIONS] = np.array(actions, np.float32)
                record = serializer.get_tf_example(features.encode_example(values))
                # Else the order of the features would differ from process to process.
                writer.write(record.SerializeToString(deterministic=True))
            rows.append(row)
            count()
        writer.close()
    with whole_files(shard.directory) as scratch:
        manifest.write(scratch / shard.rows.name, rows, labels == "labels")


def _inspect(shard: Shard, example: ListedExample, encoded: bytes, kind: str):
    """Returns an example's row and the bytes to store."""
    stored, span = encoded, None
    try:
        if example.span:
            span = span_in_file(inspection.seconds(encoded), *example.span)
        if shard.transcode:
            stored = shard.transcode(encoded, span)
        if len(stored) > RECORD_BYTES:
            raise ClipTooLarge(
                f"It has {len(stored):,} bytes, more than the {RECORD_BYTES:,} that a"
                " record may have: cut it, or prepare it with --transcode."
            )
    except UndecodableClip as error:
        digest = hashlib.sha256(encoded).hexdigest()
        status, label = str(error), example.label
        return Row(shard.split, example.id, digest, label=label, status=status), encoded
    row = Row.of(shard.split, example.id, example.label, stored, kind)
    return dataclasses.replace(row, span=span), stored


def _finish(builder: Builder, plan: epath.Path) -> None:
    """Writes the manifest, and at last the file that marks a prepared data set."""
    rows, lengths, sizes = [], {}, {}
    for shard in shards(plan):
        if not shard.finished():
            raise Unfinished(
                f"{builder.directory / shard.name} was not written, though nothing"
                " failed; run the same command again"
            )
        of_shard = list(manifest.read(shard.rows))
        rows += of_shard
        length = sum(row.status == manifest.OK for row in of_shard)
        lengths.setdefault(shard.split, []).append(length)
        size = file_size(builder.directory / shard.name)
        sizes[shard.split] = sizes.get(shard.split, 0) + size
    if not any(map(sum, lengths.values())):
        first = f"{rows[0].id}: {rows[0].status.rstrip('.')}"
        raise NothingDecodes(
            f"none of the {len(rows)} examples decodes; the first, {first}. Mend the"
            f" files, delete {builder.directory}, where this is kept, and run the same"
            " command again"
        )
    rows += builder.listing.left_out
    with whole_files(builder.directory) as scratch:
        manifest.write(scratch / manifest.NAME, rows, builder.multi_label)
    info = dataset_info(builder)
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=lengths[split],
            num_bytes=sizes[split],
            filename_template=file_template(builder, split),
        )
        for split in lengths
        if sum(lengths[split])
    ]
    info.set_splits(tfds.core.SplitDict(splits))
    with whole_files(builder.directory) as scratch:
        info.write_dataset_info_json(scratch)


def _clear(directory: epath.Path) -> None:
    """Removes files of the preparation that a prepared data set does not need."""
    for path in unfinished_files(directory):
        if path.is_dir():
            path.rmtree(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
