"""The plan of a data set: which example goes into which shard."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator

import av
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import hashing
from tensorflow_datasets.core.utils import shard_utils

from sparse_tube_vit.datasets.builders.builder import Builder, Example, load
from sparse_tube_vit.datasets.reading import UNFINISHED
from sparse_tube_vit.errors import DatasetError, TubeViTError
from sparse_tube_vit.storage import absolute, is_remote
from sparse_tube_vit.video.transcode import Transcode

PLAN = f"{UNFINISHED}plan.jsonl"


SHARD_BYTES = 1 << 30  # at most, as TFDS has it


# Smaller data sets have smaller shards, so that many workers can share them and little
# is lost when one of them ends: this many examples each, in up to this many shards.
SHARD_EXAMPLES = {"video": 16, "image": 1024}


SHARDS = 256


INFO = "dataset_info.json"


class OtherPreparation(DatasetError):
    """The directory holds the beginning of a data set with other files or options."""


class CannotWrite(DatasetError):
    """The file system does not take what is written."""


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


def make_plan(builder: Builder, transcode: Transcode | None) -> epath.Path:
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
    with publishing(directory) as scratch:
        builder.info().features.save_config(scratch)
    with publishing(directory) as scratch, open(scratch / PLAN, "w") as lines:
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
        template = template_of(builder, split)
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


def template_of(builder: Builder, split: str) -> tfds.core.ShardedFileTemplate:
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


@contextlib.contextmanager
def publishing(directory) -> Iterator[pathlib.Path]:
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
    except TubeViTError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError is ArrayRecord's
        raise CannotWrite(
            f"{directory}: {error}. Finished shards are kept: mend that, and run the"
            " same command again"
        ) from None
