"""The plan of a preparation: which example goes into which shard.

A data set is written shard by shard, in ArrayRecord as TFDS reads it. The plan puts
examples in the order of TFDS's own writer, which follows from their ids alone. Then
`write.write_shard` writes each shard, in any process on any machine: its records, and
when they are complete its rows of the manifest. When all shards are there, manifest.csv
is put together, and at last dataset_info.json, which makes the data set a prepared one.

After an interruption finished shards stay, and preparing the same data set again writes
the others. Until the end, all other files in the directory are called `preparing.*`.
Several processes may write the same data set at once: their files are equal, and each
appears complete or not at all.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

import av
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import hashing
from tensorflow_datasets.core.utils import shard_utils

from sparse_tube_vit.datasets.builders.builder import Builder, ListedExample, Span, load
from sparse_tube_vit.datasets.reading import INFO, UNFINISHED
from sparse_tube_vit.datasets.times import ACTIONS, SPAN
from sparse_tube_vit.errors import DatasetError, TubeViTError, UnwritableOutput
from sparse_tube_vit.storage import absolute, is_remote
from sparse_tube_vit.video.transcode import Transcode

PLAN = f"{UNFINISHED}plan.jsonl"
SHARD_BYTES = 1 << 30  # at most, TFDS's own limit
# Smaller data sets get smaller shards, so that many workers share them and little is
# lost in an interruption: this many examples each, in up to this many shards.
SHARD_EXAMPLES = {"video": 16, "image": 1024}
SHARDS = 256


class BadListing(DatasetError):
    """A builder lists what a data set cannot hold."""


class OtherPreparation(DatasetError):
    """The directory holds the beginning of a data set with other files or options."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Everything needed to write one file of records.

    Attributes:
        directory: Directory of the data set.
        name: Name of the file.
        split: Split that it is part of.
        builder: Name of the builder that loads the examples.
        transcode: Transcoding of clips; None stores files as they are.
        examples: Examples in the order of their records.
    """

    directory: str
    name: str
    split: str
    builder: str
    transcode: Transcode | None
    examples: list[ListedExample]

    def finished(self) -> bool:
        """Returns whether this shard, or the whole data set, is written."""
        return self.rows.exists() or (epath.Path(self.directory) / INFO).exists()

    @property
    def rows(self) -> epath.Path:
        """Its part of the manifest, written once its records are complete."""
        return epath.Path(self.directory) / f"{UNFINISHED}{self.name}.csv"


def dataset_info(builder: Builder) -> tfds.core.DatasetInfo:
    """Returns the TFDS description of a data set, without splits."""
    label = tfds.features.ClassLabel(names=builder.listing.class_names)
    if builder.multi_label:
        labels = {"labels": tfds.features.Sequence(label)}
    else:
        labels = {"label": label}
    times, examples = {}, [*itertools.chain(*builder.listing.splits.values())]
    if any(example.span for example in examples):  # empty where the file is the clip
        times[SPAN] = tfds.features.Tensor(shape=(None,), dtype=np.float32)
    if any(example.actions for example in examples):  # rows of class, start, end
        times[ACTIONS] = tfds.features.Tensor(shape=(None, 3), dtype=np.float32)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=builder.name,
            config_name=builder.config,
            version=tfds.core.Version(builder.VERSION),
            data_dir=os.fspath(builder.directory),
            module_name=type(builder).__module__,
        ),
        features=tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                **labels,
                **times,
                builder.kind: tfds.features.Tensor(shape=(), dtype=np.object_),
            }
        ),
    )
    info.set_file_format("array_record")
    return info


def write_plan(builder: Builder, transcode: Transcode | None) -> epath.Path:
    """Writes the plan, JSON lines of a header and each shard, unless it is there.

    Returns:
        The path of the plan.

    Raises:
        BadListing: TFDS cannot store it, or ids are not unique.
        OtherPreparation: The plan that is there has another header.
        UnwritableOutput: The file system refuses it.
    """
    _check_listing(builder)
    directory = epath.Path(absolute(builder.directory))
    try:
        os.fspath(directory).encode()
    except UnicodeEncodeError:
        raise UnwritableOutput(
            f"{directory}: its name is not in UTF-8, as ArrayRecord needs it. Choose"
            " another --data_dir"
        ) from None
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableOutput(
            f"{directory}: {error}. Choose another --data_dir"
        ) from None
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
    with whole_files(directory) as scratch:
        dataset_info(builder).features.save_config(scratch)
    with whole_files(directory) as scratch, open(scratch / PLAN, "w") as lines:
        for line in itertools.chain([header], _shards(builder, transcode)):
            print(json.dumps(line), file=lines)
    return plan


def _check_listing(builder):
    """Raises BadListing where examples could not be written, or not told apart."""
    known = set(builder.listing.class_names)
    for name in builder.listing.class_names:
        if not name or re.search(r"[\r\n]", name) or name != name.strip():
            raise BadListing(
                f"{builder.dataset}: {name!r} cannot name a class: TFDS keeps names on "
                "lines of their own, without spaces around them"
            )
    if len(known) < len(builder.listing.class_names):
        raise BadListing(f"{builder.dataset}: two classes have the same name")
    for split, examples in builder.listing.splits.items():
        ids = set()
        for name, label, *_ in examples:
            if name in ids:
                raise BadListing(f"{builder.dataset}: {split} has {name!r} twice")
            ids.add(name)
            labels = label if builder.multi_label else (label,)
            if unknown := [x for x in labels if x not in known]:
                raise BadListing(
                    f"{builder.dataset}: {split} {name!r} is labelled {unknown[0]!r}, "
                    "which is no class name"
                )


def _header(builder: Builder, transcode: Transcode | None) -> dict:
    """Returns everything that must be equal for a preparation to be continued."""
    listing = builder.listing
    digest = hashlib.sha256(json.dumps(listing.class_names).encode())
    for split, examples in listing.splits.items():
        for example in examples:
            line = json.dumps((split, *_fields(example)))
            digest.update(line.encode())
    return {
        "transcode": str(transcode) if transcode else None,
        "PyAV": av.__version__,
        "number of examples": {k: len(v) for k, v in listing.splits.items()},
        "list of files and labels": digest.hexdigest()[:16],
    }


def _shards(builder: Builder, transcode: Transcode | None) -> Iterator[dict]:
    """Yields the fields of each `Shard` except for the directory."""
    for split, examples in builder.listing.splits.items():
        # The order of TFDS's own writer.
        hasher = hashing.Hasher(split)
        examples = sorted(examples, key=lambda e, h=hasher: h.hash_key(e.id))
        number = _number_of_shards(builder, examples)
        ends = shard_utils.get_shard_boundaries(len(examples), number)
        template = file_template(builder, split)
        for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            path = template.sharded_filepath(shard_index=i, num_shards=number)
            yield {
                "name": path.name,
                "split": split,
                "builder": builder.name,
                "transcode": str(transcode) if transcode else None,
                "examples": [_fields(e) for e in examples[start:end]],
            }


def _fields(example: ListedExample) -> tuple:
    """Returns an example for JSON: an absolute path, and span and actions if any."""
    name, label, source, *times = example
    source = source if isinstance(source, str) else absolute(source)
    return (name, label, source, *(times if any(times) else ()))


def file_template(builder: Builder, split: str) -> tfds.core.ShardedFileTemplate:
    """Returns TFDS's template for the names of a split's files."""
    return tfds.core.ShardedFileTemplate(
        data_dir=builder.directory,
        dataset_name=builder.name,
        split=split,
        filetype_suffix="array_record",
    )


def _number_of_shards(builder: Builder, examples: list[ListedExample]) -> int:
    """Returns a number that depends on the examples alone, not on the workers."""
    # 64 files estimate the size well enough, and each may be far away.
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
            examples = [ListedExample(*example) for example in fields["examples"]]
            fields["examples"] = [
                example._replace(span=Span(*example.span)) if example.span else example
                for example in examples
            ]
            yield Shard(directory=os.fspath(epath.Path(plan).parent), **fields)


def unfinished(plan) -> Iterator[Shard]:
    """Yields the shards of a plan that are not written yet."""
    return (shard for shard in shards(plan) if not shard.finished())


@contextlib.contextmanager
def whole_files(directory) -> Iterator[pathlib.Path]:
    """Yields a local directory whose files appear in `directory`, each complete.

    Raises:
        UnwritableOutput: The file system refuses one of them.
    """
    remote = is_remote(directory)
    parent = None if remote else directory
    try:
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=parent) as scratch:
            yield pathlib.Path(scratch)
            for path in pathlib.Path(scratch).iterdir():
                if remote:  # where an object appears when it is complete
                    epath.Path(path).copy(f"{directory}/{path.name}", overwrite=True)
                else:
                    os.replace(path, os.path.join(directory, path.name))
    except TubeViTError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError is ArrayRecord's
        raise UnwritableOutput(
            f"{directory}: {error}. Finished shards are kept: mend that, and run the"
            " same command again"
        ) from None
