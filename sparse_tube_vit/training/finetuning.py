"""Fine-tuning on a folder of clips: completes what a config leaves open.

`configs/finetune.py` leaves open what it cannot know: the model's sizes and tubes, the
data set, and the number of steps. `complete` fills them in before a run begins.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import re
import shlex

from etils import epath

from sparse_tube_vit.checkpoints import image_vits, stored
from sparse_tube_vit.checkpoints.step import NoCheckpoint
from sparse_tube_vit.config import (
    ConfigDict,
    InvalidConfig,
    check_values,
    default_config,
    from_json,
    head_loss,
    open_keys,
)
from sparse_tube_vit.datasets import manifest
from sparse_tube_vit.datasets.builders import folders
from sparse_tube_vit.datasets.preparing import prepare
from sparse_tube_vit.datasets.reading import UnknownSplit
from sparse_tube_vit.log import log
from sparse_tube_vit.models.losses import LOSSES

#: Names of the test split; the first that a folder has is used.
TEST_SPLITS = ("test", "val", "validation")

#: Steps that a new head needs to learn even a handful of examples.
LEAST_STEPS = 100


@dataclasses.dataclass(frozen=True)
class FolderDataset:
    """A folder, prepared as a data set.

    Attributes:
        dataset: Its name below `data_dir`.
        kind: "video" or "image".
        test: The name of its test split.
        examples: The number of examples of split `train`.
    """

    dataset: str
    kind: str
    test: str
    examples: int


def complete(config: ConfigDict, workdir=None, data: bool = True) -> ConfigDict:
    """Returns a copy of the config with all open keys filled in.

    Open keys of `clip` and `model` are taken from the run in `workdir`, if there is
    one, or from that of `init.weights`; from an image ViT those that its files tell,
    and the others' defaults. The folder of section `data` is prepared below `data_dir`,
    unless the same files are there already, and becomes the data set of the streams and
    evaluations without one. Open keys `flip` are taken from that run's
    streams of the same kind. `total_steps`, `optimizer.warmup_steps` and
    `log_every_steps` follow from the number of its examples.

    Args:
        config: The config, which is not changed.
        workdir: The work directory of the run; None without one.
        data: Whether the data set is needed; without, what follows from it stays open.

    Raises:
        InvalidConfig: A key stays open, or has a value that cannot be.
        NoCheckpoint: There is no model to take sizes from; and the other named errors
            of `stored.locate`.
        DatasetError: The named errors of listing and preparing the folder.
    """
    config = config.copy_and_resolve_references()
    check_values(config)
    _take_sizes(config, workdir)
    if not data:
        return config
    streams, evaluations = (
        {name: source for name, source in section.items() if not source.dataset}
        for section in (config.streams, config.evaluations)
    )
    if (streams or evaluations) and not config.data.folder:
        raise InvalidConfig(
            f"{', '.join({**streams, **evaluations})} has no data set: give "
            "--config.data.folder=CLIPS, a folder of <class>/<file>."
        )
    if config.data.folder:
        data = prepare_folder(config)
        for stream in streams.values():
            stream.update(dataset=data.dataset, kind=data.kind, split="train")
        for evaluation in evaluations.values():
            evaluation.update(dataset=data.dataset, kind=data.kind, split=data.test)
        if streams and config.total_steps is None:
            _set_steps(config, data, streams.values())
    _take_flips(config, workdir)
    if config.total_steps:
        if config.optimizer.warmup_steps is None:
            config.optimizer.warmup_steps = config.total_steps // 10
        if config.log_every_steps is None:  # curves of at least 20 points
            most = default_config().log_every_steps
            config.log_every_steps = min(max(config.total_steps // 20, 1), most)
    return config


def _take_sizes(config, workdir):
    """Fills in the open keys of `clip` and `model`."""
    keys = open_keys(config)
    if not keys:
        return
    source, run = _run_before(config, workdir)
    if run is not None:
        theirs = from_json(run["config"])
    elif config.init.weights:  # no run, so that it is an image ViT
        vit = image_vits.read(config.init.weights)
        source, theirs = vit.source, default_config()
        theirs.model.update(vit.model)
    else:
        raise InvalidConfig(
            f"config.init.weights is {config.init.weights!r}, and these are open: "
            f"{', '.join(keys)}. Name a run or an image ViT that they can be taken "
            "from, or set them."
        )
    for section, _, key in (key.partition(".") for key in [*keys, "model.gate_after"]):
        if config[section][key] is None:
            config[section][key] = theirs[section][key]
    clip = config.clip
    log.info(
        "Clips of %d frames at %g fps, %dx%d pixels, and a model of %d layers of width "
        "%d, as in %s",
        *(clip.frames, clip.fps, clip.size, clip.size),
        *(config.model.depth, config.model.width, source),
    )


def _take_flips(config, workdir):
    """Fills in the open keys `flip`: as in streams of the same kind before."""
    streams = {k: s for k, s in config.streams.items() if s.flip is None}
    if not streams:
        return
    source, run = _run_before(config, workdir)
    before = from_json(run["config"]).streams.values() if run else ()
    for name, stream in streams.items():
        # Without flips of one of them, the model may tell left from right.
        stream.flip = all(s.flip for s in before if s.kind == stream.kind)
        as_in = f", as in {source}" if run else ""
        log.info("streams.%s.flip is %s%s", name, stream.flip, as_in)


def kept_heads(config: ConfigDict, workdir) -> dict[str, tuple[str, ...]]:
    """Returns the class names of the heads of `init.keep_heads`.

    Raises:
        InvalidConfig: The model to start from lacks such a head, or it is multi-label.
        TubeViTError: The named errors of `stored.locate`.
    """
    heads = config.init.keep_heads
    if not heads:
        return {}
    _, run = _run_before(config, workdir)
    theirs = run["class_names"] if run else {}
    if missing := [head for head in heads if head not in theirs]:
        raise InvalidConfig(
            f"config.init.keep_heads has {', '.join(missing)}, but the heads of "
            f"{config.init.weights} are {', '.join(theirs) or 'none'}."
        )
    before = from_json(run["config"])
    losses = {head: LOSSES[head_loss(before, head)] for head in heads}
    if several := [head for head in heads if losses[head].multi_label]:
        raise InvalidConfig(
            f"config.init.keep_heads has {', '.join(several)}, whose inputs have any "
            "number of labels: only heads with one label an input can be kept."
        )
    return {head: tuple(theirs[head]) for head in heads}


def _run_before(config, workdir):
    """Returns name and description of the model to resume or start from, or Nones."""
    source = None
    if workdir is not None:
        with contextlib.suppress(NoCheckpoint):
            source = stored.locate(epath.Path(workdir) / "checkpoints")
    if source is None:
        weights = config.init.weights
        if not weights or image_vits.holds_image_vit(weights):
            return None, None
        source = stored.locate(config.init.weights)
    return source.name, source.read_description()


def _set_steps(config, data, streams):
    """Sets the number of steps to `epochs` passes over the folder."""
    batch = sum(stream.batch_size for stream in streams)
    steps = -(-config.data.epochs * data.examples // batch)
    config.total_steps = max(steps, LEAST_STEPS)
    log.info(
        "%d steps of %d: %d epochs of %d %ss, and at least %d steps",
        *(config.total_steps, batch, config.data.epochs, data.examples),
        *(data.kind, LEAST_STEPS),
    )


def prepare_folder(config: ConfigDict) -> FolderDataset:
    """Prepares the folder of section `data`, unless it is prepared already.

    The data set's name holds a digest of its files and splits: when these change, it
    is another data set.

    Raises:
        TooFewExamples: There is one class, or one lacks examples to train or test on.
        UnknownSplit: The folder has splits, but not `train` and one of `TEST_SPLITS`.
        DatasetError: The other named errors of listing and preparing it.
    """
    data, folder = config.data, epath.Path(config.data.folder)
    kind = folders.folder_kind(folder)
    listing = folders.read_folder(folder, kind, data.split_list or None)
    if len(listing.class_names) < 2:
        raise folders.TooFewExamples(
            f"{folder} has one class, {listing.class_names[0]!r}: there is nothing to "
            f"tell apart. Give every class a folder of its own: {folder}/<class>/<file>"
        )
    digests = folders.digests(listing)
    how = f"splits as in {data.split_list or folder}"
    if set(listing.splits) == {"train"}:
        listing = folders.hold_out(listing, data.test_share, digests)
        how = (
            f"{data.test_share:.0%} of each class held out for testing, by the "
            "SHA-256 of its files (config.data.test_share)"
        )
    test = next((name for name in TEST_SPLITS if name in listing.splits), None)
    if "train" not in listing.splits or test is None:
        raise UnknownSplit(
            f"{data.split_list or folder} has the splits {', '.join(listing.splits)}. "
            f"It takes train and one of {', '.join(TEST_SPLITS)}; or class folders "
            f"alone, of which some clips are held out.{_advice(data, listing)}"
        )
    lines = [
        (split, example.id, digests[example.id])
        for split, examples in sorted(listing.splits.items())
        for example in sorted(examples)
    ]
    digest = hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w+-]+", "_", folder.name, flags=re.ASCII).strip("_")
    builder = {"image": folders.ImageFolder, "video": folders.VideoFolder}[kind](
        listing=listing,
        data_dir=config.data_dir,
        config=f"{name or 'clips'}-{digest}",
    )
    prepare.prepare(builder, workers=config.loader.workers)
    contents = "\n".join(prepare.contents(builder))
    log.info("%s as %s: %s\n%s", folder, builder.dataset, how, contents)
    counts = _counts(builder)
    _check(folder, builder, counts, ("train", test))
    examples = sum(n for (split, _), n in counts.items() if split == "train")
    return FolderDataset(builder.dataset, kind, test, examples)


def _advice(data, listing):
    """What to do about folders that are nested too deep, if they are no splits."""
    names = list(listing.splits)
    if data.split_list or {"train", *TEST_SPLITS} & {*names}:
        return ""
    if len(names) == 1:
        within = epath.Path(data.folder) / names[0]
        option = shlex.quote(f"--config.data.folder={within}")
        return f" For the classes in {names[0]}: {option}"
    return (
        f" If these are classes or groups of them, put the files of every class into "
        f"one folder: {data.folder}/<class>/<file>"
    )


def _counts(builder):
    """The number of examples written, by split and class."""
    rows = manifest.read(builder.directory / manifest.NAME)
    return collections.Counter(
        (row.split, row.label) for row in rows if row.status == manifest.OK
    )


def _check(folder, builder, counts, splits):
    """Raises TooFewExamples if a class has none in one of the splits."""
    lacking = [
        f"class {name!r} has no {builder.kind} in {split}"
        for name in builder.listing.class_names
        for split in splits
        if not counts[split, name]
    ]
    if lacking:
        damaged = [
            row.id
            for row in manifest.read(builder.directory / manifest.NAME)
            if row.split and row.status != manifest.OK
        ]
        remove = f"Remove what does not decode ({', '.join(damaged)}). "
        raise folders.TooFewExamples(
            f"{folder}: {', '.join(lacking)}. {remove if damaged else ''}Add "
            f"{builder.kind}s, or remove the class."
        )
