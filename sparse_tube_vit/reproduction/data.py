"""Data sets of the small tasks: UCF101, its clips in both directions, and images."""

import dataclasses
import fractions
from collections.abc import Sequence
from pathlib import Path

import av
from tqdm import tqdm

from sparse_tube_vit import storage
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders import folders
from sparse_tube_vit.datasets.builders.ucf101 import Ucf101
from sparse_tube_vit.datasets.preparing.prepare import prepare
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.log import log
from sparse_tube_vit.reproduction.runs import (
    Results,
    Run,
    name_of,
    same_weights,
)
from sparse_tube_vit.video.limits import UndecodableClip
from sparse_tube_vit.video.opening import naming_failures
from sparse_tube_vit.video.transcode import Transcode

#: Classes of UCF101 that results are of: motions of one body, in like places.
CLASSES = (
    "BodyWeightSquats",
    "HandstandPushups",
    "HandstandWalking",
    "JumpRope",
    "JumpingJack",
    "Lunges",
    "PullUps",
    "PushUps",
    "TrampolineJumping",
    "WallPushups",
)

#: Transcoding for models of 64 pixels. Decoding the original clips takes as long as a
#: step of such a model; decoding these takes half as long.
SMALL_CLIPS = Transcode(short_side=96, gop=12, crf=18)

#: Directions of a clip, by the step through its frames.
DIRECTIONS = {"forwards": 1, "backwards": -1}


def needed(runs: Sequence[Run]) -> set[str]:
    """Returns the data sets that runs read, without those that are made on demand."""
    streams = (s for run in runs for s in run.config.streams.values())
    return {s.dataset for s in streams if not _embedded(s.dataset)}


def prepare_data(
    runs: Sequence[Run],
    data_dir: str,
    ucf101: str | None,
    images: str | None,
    workers: int | None = None,
) -> None:
    """Prepares the data sets of runs, as far as they are not prepared.

    Args:
        runs: The runs.
        data_dir: Folder of prepared data sets.
        ucf101: Folder with `videos/` and the official lists of UCF101, classInd.txt,
            trainlist01.txt and testlist01.txt. Of the classes, those of `CLASSES` are
            taken.
        images: Folder of Tiny-ImageNet, `train/<class>/` and `val/<class>/`, of all
            classes or some.
        workers: Processes that write; None: one a core; 0: this one.

    Raises:
        DatasetError: The named errors of listing and preparing them.
    """
    wanted = needed(runs)

    def write(builder_class, config, listing, transcode=None):
        builder = builder_class(config=config, listing=listing, data_dir=data_dir)
        log.info("%s", prepare(builder, transcode, workers))

    if ucf101:
        listing = _of_classes(Ucf101.read(Path(ucf101) / "videos", ucf101))
        for config, transcode in (("split1", None), ("split1_small", SMALL_CLIPS)):
            if f"ucf101/{config}" in wanted:
                write(Ucf101, config, listing, transcode)
        if "video_folder/ucf101_directions_small" in wanted:
            directory = Path(data_dir) / "ucf101_directions"
            write_directions(listing, directory)
            listing = folders.read_folder(directory, "video")
            name = "ucf101_directions_small"
            write(folders.VideoFolder, name, listing, SMALL_CLIPS)
    if images and "image_folder/tiny_imagenet" in wanted:
        listing = folders.read_folder(images, "image")
        write(folders.ImageFolder, "tiny_imagenet", listing)


def _of_classes(listing):
    """Returns a listing of UCF101 without clips of other classes than `CLASSES`."""
    if missing := [name for name in CLASSES if name not in listing.class_names]:
        raise DatasetError(
            f"classInd.txt of --ucf101 lacks {', '.join(missing)}: results are of "
            f"{len(CLASSES)} classes, these among them."
        )
    splits = {
        split: [clip for clip in listed if clip.label in CLASSES]
        for split, listed in listing.splits.items()
    }
    names = tuple(name for name in listing.class_names if name in CLASSES)
    return dataclasses.replace(listing, class_names=names, splits=splits)


def write_directions(listing, directory: Path) -> None:
    """Writes every clip forwards and backwards, as clips of two classes.

    Both are encoded anew, in the same way, so that the second encoding does not tell
    which is which. Traces of the first one are turned round in one of them.

    Args:
        listing: Clips of UCF101 by split.
        directory: Where `<split>/<class>_<direction>/<clip>.mp4` are written; those
            that are there stay.

    Raises:
        DatasetError: A clip does not decode.
    """
    with storage.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with storage.locked(directory):  # another runner may write them
        _write_directions(listing, directory)


def _write_directions(listing, directory):
    clips = [(split, x) for split, listed in listing.splits.items() for x in listed]
    for split, clip in tqdm(clips, desc="Clips in both directions", unit="clip"):
        file = f"{Path(clip.id).name}.mp4"
        paths = {
            directory / split / f"{clip.label}_{name}" / file: step
            for name, step in DIRECTIONS.items()
        }
        if all(path.exists() for path in paths):
            continue
        try:
            with naming_failures(), av.open(str(clip.source)) as source:
                rate = source.streams.video[0].average_rate or 25
                frames = source.decode(video=0)
                frames = [frame.to_ndarray(format="yuv420p") for frame in frames]
                if not frames:
                    raise UndecodableClip("It has no frames.")
        except UndecodableClip as error:
            raise DatasetError(
                f"{clip.source}: {error} Remove it from --ucf101."
            ) from error
        for path, step in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            _encode(frames[::step], rate, unfinished)
            unfinished.replace(path)


def _encode(frames, rate, path):
    """Writes frames, uint8 in planes of YUV 4:2:0 (3/2 H, W), as H.264."""
    options = {"preset": "medium", "crf": "18", "threads": "1"}
    with av.open(str(path), "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=rate, options=options)
        height, width = frames[0].shape
        stream.height, stream.width = height * 2 // 3, width
        stream.pix_fmt, stream.gop_size = "yuv420p", 12
        for i, frame in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(frame, format="yuv420p")
            frame.pts, frame.time_base = i, fractions.Fraction(1) / rate
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))


class OtherData(DatasetError):
    """Results that are stored of a task are of other data or weights than given."""


#: What to do about stored results of other data or weights.
_APART = "To keep the two apart, give --runs, --results and --document of your own."


def check_weights(runs: Sequence[Run], results: Results, weights: str) -> None:
    """Compares the weights that runs start from with those of stored results.

    Args:
        runs: Runs on one task.
        results: Results, of other seeds and rows of the task too.
        weights: Weights of an image ViT.

    Raises:
        OtherData: A table would mix results of both.
    """
    task, taken = runs[0].task, any(run.takes_weights for run in runs)
    given = name_of(weights) if taken else ""
    stored = sorted(results.weights(task)) if taken else []
    if other := [name for name in stored if not same_weights(name, given)]:
        raise OtherData(
            f"{results.path(task)} has results that start from {other[0]}; those of "
            f"--weights are {given}. {_APART}"
        )


def check_data(runs: Sequence[Run], results: Results, data_dir: str) -> None:
    """Checks that runs' data is prepared, its test sets of the size of stored results'.

    Args:
        runs: Runs on one task.
        results: Results, of other seeds and rows of the task too.
        data_dir: Folder of prepared data sets.

    Raises:
        DatasetNotPrepared: A data set is not prepared. Names all.
        OtherData: A table would mix results of both.
    """
    missing = [x for x in needed(runs) if not reading.prepared_directory(x, data_dir)]
    if missing:
        raise reading.DatasetNotPrepared(
            f"{' and '.join(sorted(missing))} not prepared in {data_dir}; --ucf101 and "
            "--images do that, but in a --dry_run."
        )
    evaluations = {
        (name, e.dataset, e.split)
        for run in runs
        for name, e in run.config.evaluations.items()
        if not _embedded(e.dataset)
    }
    task = runs[0].task
    for name, dataset, split in sorted(evaluations):
        count = len(reading.open_split(dataset, split, data_dir))
        if other := results.examples(task, name) - {count}:
            raise OtherData(
                f"{results.path(task)} has results of {min(other)} examples of "
                f"{dataset} {split}; that in {data_dir} has {count}. {_APART}"
            )


def _embedded(dataset):
    """Returns whether a data set is made where it is missing, or there is none."""
    return not dataset or dataset.startswith("moving_shapes/")
