"""Data sets of the small tasks: UCF101, its clips in both directions, and images."""

import fractions
from collections.abc import Mapping, Sequence
from pathlib import Path

import av
from tqdm import tqdm

from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.builders import folders
from sparse_tube_vit.datasets.builders.ucf101 import Ucf101
from sparse_tube_vit.datasets.preparing.prepare import prepare
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.log import log
from sparse_tube_vit.reproduction.runs import Results, Run, name_of
from sparse_tube_vit.reproduction.tables import TABLES, Row

#: Directions of a clip, by the step through its frames.
DIRECTIONS = {"forwards": 1, "backwards": -1}


def prepare_data(
    data_dir: str, ucf101: str | None, images: str | None, workers: int | None = None
) -> None:
    """Prepares data sets, as far as they are not prepared.

    Args:
        data_dir: Folder of prepared data sets.
        ucf101: Folder with `videos/` and the official lists of UCF101, classInd.txt,
            trainlist01.txt and testlist01.txt, of all classes or some.
        images: Folder of Tiny-ImageNet, `train/<class>/` and `val/<class>/`, of all
            classes or some.
        workers: Processes that write; None: one a core; 0: this one.

    Raises:
        DatasetError: The named errors of listing and preparing them.
    """
    if ucf101:
        listing = Ucf101.read(Path(ucf101) / "videos", ucf101)
        builder = Ucf101(config="split1", listing=listing, data_dir=data_dir)
        log.info("%s", prepare(builder, workers=workers))
        directions = Path(data_dir) / "ucf101_directions"
        write_directions(listing, directions)
        listing = folders.read_folder(directions, "video")
        builder = folders.VideoFolder(
            config="ucf101_directions", listing=listing, data_dir=data_dir
        )
        log.info("%s", prepare(builder, workers=workers))
    if images:
        listing = folders.read_folder(images, "image")
        builder = folders.ImageFolder(
            config="tiny_imagenet", listing=listing, data_dir=data_dir
        )
        log.info("%s", prepare(builder, workers=workers))


def write_directions(listing, directory: Path) -> None:
    """Writes every clip forwards and backwards, as clips of two classes.

    Both are encoded anew, in the same way, so that the second encoding does not tell
    which is which. Traces of the first one are turned round in one of them.

    Args:
        listing: Clips of UCF101 by split.
        directory: Where `<split>/<class>_<direction>/<clip>.mp4` are written; those
            that are there stay.
    """
    clips = [(split, x) for split, listed in listing.splits.items() for x in listed]
    for split, clip in tqdm(clips, desc="Clips in both directions", unit="clip"):
        file = f"{Path(clip.id).name}.mp4"
        paths = {
            directory / split / f"{clip.label}_{name}" / file: step
            for name, step in DIRECTIONS.items()
        }
        if all(path.exists() for path in paths):
            continue
        with av.open(str(clip.source)) as source:
            rate = source.streams.video[0].average_rate
            frames = [f.to_ndarray(format="yuv420p") for f in source.decode(video=0)]
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


def check_same(
    runs: Sequence[Run], results: Results, data_dir: str, weights: str
) -> None:
    """Compares test sets, by their sizes, and weights with those of stored results.

    Args:
        runs: The runs, before any of them; their data sets are prepared.
        results: Results, of other seeds and rows of the same tasks too.
        data_dir: Folder of prepared data sets.
        weights: Weights of an image ViT.

    Raises:
        OtherData: A table would mix results of both.
    """
    apart = "To keep the two apart, give --results and --document of your own."
    for task in sorted({run.task for run in runs if run.takes_weights}):
        if other := results.weights(task) - {name_of(weights)}:
            raise OtherData(
                f"{results.path(task)} has results that start from {min(other)}; "
                f"--weights is {weights}. {apart}"
            )
    sources = {
        (run.task, name, e.dataset, e.split)
        for run in runs
        for name, e in run.config.evaluations.items()
        if e.dataset and not e.dataset.startswith("moving_shapes/")
    }
    for task, name, dataset, split in sorted(sources):
        count = len(reading.open_split(dataset, split, data_dir))
        if other := results.examples(task, name) - {count}:
            raise OtherData(
                f"{results.path(task)} has results of {min(other)} examples of "
                f"{dataset} {split}; that in {data_dir} has {count}. {apart}"
            )


def missing(task: str, rows: Mapping[str, Sequence[Row]], data_dir: str) -> list[str]:
    """Returns the data sets that rows need on a task and that are not prepared.

    Args:
        task: Name of the task.
        rows: Rows by the number of their table; tables without the task need nothing.
        data_dir: Folder of prepared data sets.
    """
    runs = [
        Run.of(table, row, task, 0)
        for table, chosen in rows.items()
        for row in chosen
        if task in TABLES[table].tasks
    ]
    names = {
        source.dataset
        for run in [*runs, *filter(None, [run.after for run in runs])]
        for source in run.config.streams.values()
    }
    return sorted(
        name
        for name in names
        if name  # fine-tuning without images
        and not name.startswith("moving_shapes/")
        and not reading.prepared_directory(name, data_dir)
    )
