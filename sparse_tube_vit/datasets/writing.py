"""Writes data sets shard by shard, in ArrayRecord as TFDS reads it.

First a plan says which example goes into which shard, in the order in which TFDS itself
would write them: it follows from their ids alone. Then `write_shard` writes a shard,
whatever process or machine runs it: its records, and when they are all there its rows
of the manifest. When no shard is left, manifest.csv is put together and at last
dataset_info.json written, which makes it a prepared data set.

Whatever ends before, finished shards stay, and writing the same data set again goes on
with the others. Until the end, the other files in the directory are `preparing.*`.
Several processes may write the same data set at once: their files are the same, and
each appears complete or not at all.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import av
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.core import hashing
from tensorflow_datasets.core.utils import shard_utils

from sparse_tube_vit.datasets import (
    UNFINISHED,
    DatasetError,
    builder_class,
    manifest,
)
from sparse_tube_vit.datasets.encoded import Builder, Example
from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.datasets.transcode import Transcode
from sparse_tube_vit.input.decode import UndecodableClip
from sparse_tube_vit.paths import absolute, is_remote

PLAN = f"{UNFINISHED}plan.jsonl"
INFO = "dataset_info.json"

SHARD_BYTES = 1 << 30  # at most, as TFDS has it
# Smaller data sets have smaller shards, so that many workers can share them and little
# is lost when one of them ends: this many examples each, in up to this many shards.
SHARD_EXAMPLES = {"video": 16, "image": 1024}
SHARDS = 256


class OtherPreparation(DatasetError):
    """The directory holds the beginning of a data set with other files or options."""


class UnreadableFile(DatasetError):
    """A listed file cannot be read."""


class CannotWrite(DatasetError):
    """The file system does not take what is written."""


class Unfinished(DatasetError):
    """A runner ended before everything was written, as of a pipeline not waited for."""


class NothingDecodes(DatasetError):
    """Not one of the examples decodes."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """All that it takes to write one file of records.

    Attributes:
        directory: Of the data set.
        name: Of the file.
        split: The split it is part of.
        builder: Name of the builder that loads the examples.
        transcode: How clips are transcoded; None stores files as they are.
        examples: In the order of their records.
    """

    directory: str
    name: str
    split: str
    builder: str
    transcode: Transcode | None
    examples: list[Example]

    def finished(self) -> bool:
        """Whether it is written already, or all of the data set is."""
        return self.rows.exists() or (epath.Path(self.directory) / INFO).exists()

    @property
    def rows(self) -> epath.Path:
        """Its part of the manifest, which is there once the shard is finished."""
        return epath.Path(self.directory) / f"{UNFINISHED}{self.name}.csv"


def write(
    builder: Builder,
    transcode: Transcode | None = None,
    run: Callable[[epath.Path], None] | None = None,
) -> bool:
    """Writes a data set, or what a former call has left of it to be written.

    Args:
        builder: What to write.
        transcode: Applied to every clip; None stores files as they are.
        run: Called with the plan, writes all its `unfinished` shards; by default one
            by one in this process.

    Returns:
        True if it was written, False if it was there already.

    Raises:
        OtherPreparation: It was begun with other files or options.
        UnreadableFile: A listed file cannot be read.
        CannotWrite: A full disk, or whatever else the file system says.
        Unfinished: `run` returned before all shards were written.
        NothingDecodes: Not one of the examples decodes.
    """
    prepared = builder.directory / INFO
    written = False
    if not prepared.exists():
        try:
            plan = _plan(builder, transcode)
            (run or write_all)(plan)
            _finish(builder, plan)
            written = True
        except Exception:
            # Another process has finished it, and removed what this one still used.
            if not prepared.exists():
                raise
    _clear(builder.directory)
    return written


def _plan(builder: Builder, transcode: Transcode | None) -> epath.Path:
    """Says what goes where in a file: a header, then a line for each shard."""
    directory = epath.Path(absolute(builder.directory))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"{directory}: {error}. Choose another --data_dir") from None
    plan = directory / PLAN
    header = _header(builder, transcode)
    if plan.exists():
        with plan.open() as lines:
            begun = json.loads(next(iter(lines)))
        differs = [
            f"another {key} ({begun.get(key)}, now {value})"
            for key, value in header.items()
            if value != begun.get(key)
        ]
        if differs:
            raise OtherPreparation(
                f"{directory} was begun with {', '.join(differs)}; finish it as it was"
                " begun, or delete that directory to begin again"
            )
        return plan
    with _publishing(directory) as scratch:
        builder.info().features.save_config(scratch)
    with _publishing(directory) as scratch, open(scratch / PLAN, "w") as lines:
        for line in itertools.chain([header], _shards(builder, transcode)):
            print(json.dumps(line), file=lines)
    return plan


def _header(builder: Builder, transcode: Transcode | None) -> dict:
    """What must be the same for a begun data set to be finished."""
    listing = builder.listing
    digest = hashlib.sha256(json.dumps(listing.class_names).encode())
    for split, examples in listing.splits.items():
        for example in examples:
            line = json.dumps((split, *_portable(example)))
            digest.update(line.encode())
    return {
        "transcode": str(transcode) if transcode else None,
        "PyAV": av.__version__,
        "number of examples": {k: len(v) for k, v in listing.splits.items()},
        "list of files and labels": digest.hexdigest()[:16],
    }


def _shards(builder: Builder, transcode: Transcode | None) -> Iterator[dict]:
    """Yields the fields of each `Shard`, but for the directory."""
    for split, examples in builder.listing.splits.items():
        # The order of TFDS's own writer, so that data sets keep theirs.
        hasher = hashing.Hasher(split)
        examples = sorted(examples, key=lambda e, h=hasher: h.hash_key(e.id))
        number = _number_of_shards(builder, examples)
        ends = shard_utils.get_shard_boundaries(len(examples), number)
        template = _template(builder, split)
        for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            path = template.sharded_filepath(shard_index=i, num_shards=number)
            yield {
                "name": path.name,
                "split": split,
                "builder": builder.name,
                "transcode": str(transcode) if transcode else None,
                "examples": [_portable(e) for e in examples[start:end]],
            }


def _portable(example: Example) -> Example:
    """The example as another process can read it."""
    if isinstance(example.source, str):
        return example
    return example._replace(source=absolute(example.source))


def _template(builder: Builder, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=builder.directory,
        dataset_name=builder.name,
        split=split,
        filetype_suffix="array_record",
    )


def _number_of_shards(builder: Builder, examples: list[Example]) -> int:
    """A function of the examples alone, whoever comes to write them."""
    # 64 files tell the size well enough, and each may be far away.
    sample = examples[:: -(-len(examples) // 64)]
    size = sum(len(load(builder, e.source)) for e in sample) / len(sample)
    by_size = round(size * len(examples)) // SHARD_BYTES + 1
    by_number = min(-(-len(examples) // SHARD_EXAMPLES[builder.kind]), SHARDS)
    return min(max(by_size, by_number), len(examples))


def shards(plan) -> Iterator[Shard]:
    """Yields all shards of a plan."""
    with epath.Path(plan).open() as lines:
        lines = iter(lines)
        next(lines)  # the header
        for line in lines:
            fields = json.loads(line)
            options = fields["transcode"]
            fields["transcode"] = Transcode.parse(options) if options else None
            fields["examples"] = [Example(*e) for e in fields["examples"]]
            yield Shard(directory=os.fspath(epath.Path(plan).parent), **fields)


def unfinished(plan) -> Iterator[Shard]:
    """Yields the shards of a plan that are still to be written."""
    return (shard for shard in shards(plan) if not shard.finished())


def write_all(plan) -> None:
    """Writes all unfinished shards of a plan, one by one."""
    for shard in unfinished(plan):
        write_shard(shard)


def write_shard(shard: Shard, seen: Callable[[], None] = lambda: None) -> None:
    """Writes a shard's file of records, then its part of the manifest.

    An example that does not decode is left out of the records; its row says why. A
    shard that another process has written meanwhile is left as it is.

    Args:
        shard: What to write.
        seen: Called after every example.

    Raises: UnreadableFile, CannotWrite.
    """
    if shard.finished():
        for _ in shard.examples:
            seen()
        return
    builder = builder_class(shard.builder)
    features = tfds.features.FeaturesDict.from_config(shard.directory)
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    kind = "image" if "image" in features else "video"
    labels = "labels" if "labels" in features else "label"
    rows = []
    with _publishing(shard.directory) as scratch:
        path = os.fspath(scratch / shard.name)
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        for example in shard.examples:
            encoded = load(builder, example.source)
            row, stored = _inspect(shard, example, encoded, kind)
            if row.status == manifest.OK:
                values = {"id": example.id, labels: example.label, kind: stored}
                record = serializer.get_tf_example(features.encode_example(values))
                # Else the order of the features would differ from process to process.
                writer.write(record.SerializeToString(deterministic=True))
            rows.append(row)
            seen()
        writer.close()
    with _publishing(shard.directory) as scratch:
        manifest.write(scratch / shard.rows.name, rows, labels == "labels")


def load(builder: Builder | type[Builder], source) -> bytes:
    """The encoded file that the builder has for a source; raises UnreadableFile."""
    try:
        return builder.load(source)
    except OSError as error:
        # It may be one file, or the whole file system for a moment: not to be skipped.
        raise UnreadableFile(
            f"{source}: {error}. Finished shards are kept: when it can be read again,"
            " run the same command. To leave it out, put an empty file in its place"
        ) from None


def _inspect(shard: Shard, example: Example, encoded: bytes, kind: str):
    """Returns the example's row, and the bytes to be stored."""
    try:
        stored = shard.transcode(encoded) if shard.transcode else encoded
    except UndecodableClip as error:
        digest = hashlib.sha256(encoded).hexdigest()
        status, label = str(error), example.label
        return Row(shard.split, example.id, digest, label=label, status=status), encoded
    return Row.of(shard.split, example.id, example.label, stored, kind), stored


def _finish(builder: Builder, plan: epath.Path) -> None:
    """Writes the manifest, and at last what makes this a prepared data set."""
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
        size = _size(builder.directory / shard.name)
        sizes[shard.split] = sizes.get(shard.split, 0) + size
    if not any(map(sum, lengths.values())):
        raise NothingDecodes(
            f"none of the {len(rows)} examples decodes; the first, {rows[0].id}:"
            f" {rows[0].status}"
        )
    rows += builder.listing.left_out
    with _publishing(builder.directory) as scratch:
        manifest.write(scratch / manifest.NAME, rows, builder.multi_label)
    info = builder.info()
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=lengths[split],
            num_bytes=sizes[split],
            filename_template=_template(builder, split),
        )
        for split in lengths
        if sum(lengths[split])
    ]
    info.set_splits(tfds.core.SplitDict(splits))
    with _publishing(builder.directory) as scratch:
        info.write_dataset_info_json(scratch)


def _size(path: epath.Path) -> int:
    if is_remote(path):
        return path.stat().length
    return os.path.getsize(path)  # epath's needs a name for the owner


def _clear(directory: epath.Path) -> None:
    """Removes what a finished data set does not need."""
    for path in directory.glob(f"{UNFINISHED}*"):
        if path.is_dir():
            path.rmtree(missing_ok=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _publishing(directory) -> Iterator[pathlib.Path]:
    """Gives a local directory whose files then appear in `directory`, complete.

    Raises CannotWrite.
    """
    remote = is_remote(directory)
    place = None if remote else directory
    try:
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=place) as scratch:
            yield pathlib.Path(scratch)
            for path in pathlib.Path(scratch).iterdir():
                if remote:  # where an object appears when it is complete
                    epath.Path(path).copy(f"{directory}/{path.name}", overwrite=True)
                else:
                    os.replace(path, os.path.join(directory, path.name))
    except (OSError, RuntimeError) as error:  # RuntimeError is ArrayRecord's
        raise CannotWrite(
            f"{directory}: {error}. Finished shards are kept: mend that, and run the"
            " same command again"
        ) from None
