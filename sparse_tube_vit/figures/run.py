"""Pictures of a training run and of its batches, by kind, and their files."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from matplotlib.animation import Animation
from matplotlib.figure import Figure

from sparse_tube_vit import figures, storage
from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.evaluations import read_evaluations
from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.errors import TubeViTError, UnwritableOutput
from sparse_tube_vit.figures.batches import batch_grids
from sparse_tube_vit.figures.confusion import confusion_of
from sparse_tube_vit.figures.curves import protocol_of
from sparse_tube_vit.inference import clips
from sparse_tube_vit.inference.loaded import AmbiguousHead, TrainedTubeViT, load
from sparse_tube_vit.inference.rollout import attention_shares
from sparse_tube_vit.input import examples
from sparse_tube_vit.models.tubevit import UnknownHead
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.training.inspection import examples_of_step
from sparse_tube_vit.training.reporting import read_metrics, training_metrics
from sparse_tube_vit.training.utilization import examples_per_second
from sparse_tube_vit.video import opening
from sparse_tube_vit.video.limits import Limits


class NothingToDraw(TubeViTError, ValueError):
    """A run lacks what a picture shows."""


class NoDirectory(TubeViTError, ValueError):
    """A model without a work directory, where pictures and pages would go."""


@dataclasses.dataclass
class Run:
    """A run, finished or not, whose files are read when they are first needed.

    Attributes:
        model: Work directory of training, or whatever else `load` takes: a model alone,
            without metrics and evaluations.
        clip_file: Video or image to draw on; by default the first of an evaluation.
        data_dir: Prepared data sets, if not those of the config.
        normalization: As for `load`.
    """

    model: str
    clip_file: str | None = None
    data_dir: str | None = None
    normalization: str = ""

    @functools.cached_property
    def workdir(self) -> epath.Path | None:
        """The work directory; None for a release or one step of a run."""
        try:
            found = stored.locate(self.model)
        except TubeViTError:  # there are curves before the first checkpoint
            return epath.Path(self.model)
        alone = found.folder == stored.open_path(self.model)
        return None if alone else found.workdir

    @functools.cached_property
    def trained(self) -> TrainedTubeViT:
        """The model of the latest checkpoint. Raises: As `load`."""
        trained = load(self.model, normalization=self.normalization)
        if self.data_dir:
            trained.config.data_dir = self.data_dir
        return trained

    @property
    def config(self) -> ConfigDict:
        return self.trained.config

    @functools.cached_property
    def metrics(self) -> list[dict]:
        """Lines of metrics.jsonl; none for parameters that were never trained here."""
        if not self.workdir or not (self.workdir / "metrics.jsonl").exists():
            return []
        return read_metrics(self.workdir)

    @functools.cached_property
    def evaluations(self) -> dict[str, dict]:
        """The last result of every protocol, by the stem of its JSON file."""
        last = {}
        if not self.workdir:
            return last
        results = read_evaluations(self.workdir / "evaluations")
        for stem, result in results.items():
            protocol = re.sub(r"_step\d+", "", stem)
            if protocol not in last or result["step"] > last[protocol][1]["step"]:
                last[protocol] = stem, result
        return dict(last.values())

    @functools.cached_property
    def clip(self) -> "Clip":
        """What pictures of a clip show, as `clip_of`."""
        return clip_of(self.config, self.clip_file)

    def output(self, name: str) -> epath.Path:
        """Returns the path of a file or folder in the work directory.

        Raises:
            NoDirectory: It is a model alone.
        """
        if self.workdir is None:
            raise NoDirectory(
                f"{self.model} is a release or one step of a run, into which nothing "
                "is written: say with --out where it goes."
            )
        return self.workdir / name


class Clip(NamedTuple):
    """A clip or an image to draw on.

    Attributes:
        view: One view of it, uint8 (T, H, W, 3).
        name: The path of its file, or the id of an example of a data set.
        is_file: Whether it is a file that was asked for.
        labels: The classes of an example; none of a file.
        head: The head that an example is evaluated with; None for a file.
    """

    view: np.ndarray
    name: str
    is_file: bool = True
    labels: tuple[str, ...] = ()
    head: str | None = None

    @property
    def suffix(self) -> str:
        """Of the names of its pictures: a file's folder and name, else nothing."""
        if not self.is_file:
            return ""
        path = pathlib.PurePosixPath(storage.absolute(self.name))
        return "".join(f"_{part}" for part in (path.parent.name, path.stem) if part)


def clip_of(config: ConfigDict, file: str | None = None) -> Clip:
    """Returns a clip with one view, as the config's evaluation samples it.

    Args:
        config: The config of the run.
        file: Video or image; by default the first example that the config evaluates.

    Raises:
        UnreadableFile, UndecodableClip: The file cannot be read or decoded.
        DatasetError: The data set cannot be read.
        NothingToDraw: Neither a file nor a data set is given.
    """
    if file is not None:
        with clips.naming(file):
            limits = Limits.of(config.loader)
            kind = opening.kind_of(storage.read_file(file), limits, file)
        if kind == "video":
            return Clip(clips.read_clip(file, config), file)
        return Clip(clips.read_image(file, config)[None], file)
    sources = [*config.evaluations.values(), *config.streams.values()]
    if not sources:
        raise NothingToDraw(
            "The model names no data set with a clip. Give --clip FILE."
        )
    source = min(sources, key=lambda source: source.kind != "video")
    split = reading.open_split(source.dataset, source.split, config.data_dir)
    example = examples.EvaluationExample.of(config.clip, config.loader, source)
    record = split[0]
    view = example.read_record(record, None)["video"][0]
    labels = labels_of(record, split.class_names)
    return Clip(view, record["id"], False, labels, source.head)


def labels_of(record: Mapping, class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the classes of an example, which has one label or several."""
    label = np.asarray(record["label"])
    return tuple(
        class_names[i] for i in (np.flatnonzero(label) if label.ndim else [label])
    )


# ---- kinds of pictures


class Picture(NamedTuple):
    """A picture to save or to show.

    Attributes:
        name: The name of its file, without the suffix.
        drawn: A figure, or an animation.
        caption: What it shows.
        photographic: Whether most of it is photographs.
    """

    name: str
    drawn: Figure | Animation
    caption: str
    photographic: bool = False


Pictures = Iterator[Picture]


def curves(run: Run) -> Pictures:
    """Loss and accuracy, and throughput, against steps."""
    if run.metrics:
        caption = "Loss and accuracy of training and evaluation, against steps."
        figure = figures.training_curves(run.metrics)
        yield Picture("training_curves", figure, caption)
    if any(examples_per_second(training_metrics(line)) for line in run.metrics):
        caption = "Examples per second, use of the devices, and the parts of the time."
        yield Picture("throughput", figures.throughput(run.metrics), caption)


def tubes(run: Run) -> Pictures:
    """The tubes over a clip, still and animated."""
    yield from tubes_over(run.clip, run.config)


def tubes_over(clip: Clip, config: ConfigDict) -> Pictures:
    """Draws tubes over a clip: still and, of more frames than one, animated."""
    drawn = make_tubes(config.model.tubes)
    caption = (
        "Frames of a clip, a row a tube, with the windows that it reads; pale: frames "
        "that it does not read."
    )
    figure = figures.tube_layout(clip.view, drawn)
    yield Picture(f"tubes{clip.suffix}", figure, caption, True)
    if len(clip.view) > 1:
        caption = "The clip as it plays, with the windows that every tube reads."
        animation = figures.tube_animation(clip.view, drawn, config.clip.fps)
        yield Picture(f"tubes_animated{clip.suffix}", animation, caption, True)


def kernels(run: Run) -> Pictures:
    """Learned filters of every tube."""
    for name, parameters in run.trained.params["stem"].items():  # tube_0, ... or shared
        kernel = np.asarray(parameters["kernel"])
        size = "x".join(map(str, kernel.shape[:3]))
        caption = f"Learned filters of {name.replace('_', ' ')}, {size}."
        name = f"kernels_{name.removeprefix('tube_')}_{size}"
        yield Picture(name, figures.kernels(kernel), caption)


def positions(run: Run) -> Pictures:
    """Cosine similarity of position embeddings."""
    model = run.trained.model
    if model.positions == "none":
        return
    clip = model.clip
    if all(source.kind == "image" for source in run.config.streams.values()):
        clip = (1, *clip[1:])
    embeddings = model.apply(
        {"params": run.trained.params},
        clip,
        method=lambda model, clip: model.place(clip),
    )
    figure = figures.position_similarity(np.asarray(embeddings), model.tubes, clip)
    caption = "Cosine similarity of the tokens' position embeddings."
    yield Picture("positions", figure, caption)


def attention(run: Run) -> Pictures:
    """Attention of the pooling, and attention rollout, over a clip."""
    model, clip = run.trained.model, run.clip
    by_kind = attention_shares(model, run.trained.params, clip.view[None])
    titles = {"pooling": "Attention of the pooling", "rollout": "Attention rollout"}
    about = _about(run)
    for kind, title in titles.items():
        weights = np.asarray(jax.device_get(by_kind[kind][0]))
        title = f"{title}: {about}"
        figure = figures.attention(clip.view, model.tubes, weights, title)
        caption = f"{title}. A row a tube; grey: what it does not read."
        yield Picture(f"attention_{kind}{clip.suffix}", figure, caption, True)


def _about(run):
    """Returns the clip's name, its classes, and the predictions for it."""
    clip, trained = run.clip, run.trained
    about = ["/".join(pathlib.PurePosixPath(clip.name).parts[-2:])]
    if not clip.is_file:
        about.append(f"label {' and '.join(clip.labels) or 'none'}")
    try:
        head = trained.choose_head(
            "video" if len(clip.view) > 1 else "image", clip.head
        )
        ((name, probability),) = trained.predict(clip.view, head, top=1)
        about.append(f"predicted {name} ({probability:.0%})")
    except (AmbiguousHead, UnknownHead):  # it has several heads for such, or none
        pass
    return ", ".join(about)


def confusion(run: Run) -> Pictures:
    """Confusion matrices of the last evaluations with one label an example."""
    for name, e in run.evaluations.items():
        if "confusion" in e:
            caption = f"Confusion matrix of {e['evaluation']}: labels by predictions."
            yield Picture(f"{name}_confusion", confusion_of(e), caption)


def tokens(*runs: Run) -> Pictures:
    """Accuracy against the number of tokens, of one run or of several."""
    results = {str(run.model): [*run.evaluations.values()] for run in runs}
    protocols = [protocol_of(e) for es in results.values() for e in es]
    counts = {(protocol_of(e), e["tokens"]) for es in results.values() for e in es}
    if len(counts) > len({*protocols}):
        caption = "Accuracy against the number of tokens."
        yield Picture("tokens", figures.accuracy_by_tokens(results), caption)


KINDS: dict[str, Callable[..., Pictures]] = {
    "curves": curves,
    "tubes": tubes,
    "kernels": kernels,
    "positions": positions,
    "attention": attention,
    "confusion": confusion,
    "tokens": tokens,
}
#: Why a run may have no picture of a kind.
ABSENT = {
    "curves": "It has no metrics.jsonl: its parameters come from elsewhere.",
    "confusion": "Evaluate it first, on examples with one label each.",
    "positions": "The model has no position embeddings.",
    "tokens": "Give several runs, or evaluate one with --stride_scale 0.5 as well.",
}


# ---- files


def draw_run(runs: Sequence[Run], kind: str = "run", out=None) -> list[epath.Path]:
    """Writes the pictures of a kind; returns their paths.

    Args:
        runs: One; for the kind "tokens" any number.
        kind: One of `KINDS`, or "run" for all of which there is something to draw.
        out: Directory; by default WORKDIR/figures.

    Raises:
        NoDirectory: There is no work directory to write to.
        UnwritableOutput: A picture cannot be written.
        NothingToDraw: The runs have no picture of this kind.
        And what reading the run raises.
    """
    kinds = KINDS if kind == "run" else {kind: KINDS[kind]}
    out = out or runs[0].output("figures")
    paths = [path for draw in kinds.values() for path in write(draw(*runs), out)]
    if not paths:
        names = ", ".join(str(run.model) for run in runs)
        why = ABSENT.get(kind, "")
        raise NothingToDraw(
            f"{names}: nothing there that {kind} could show. {why}".strip()
        )
    return paths


def draw_batches(config: ConfigDict, step: int, out) -> list[epath.Path]:
    """Writes a step's batches as STREAM_stepK_PAGE.png; returns the paths.

    Raises:
        UnwritableOutput: A picture cannot be written.
        And as `examples_of_step`.
    """
    pages = (
        Picture(f"{name}_step{step}_{i}", figure, f"Examples of {name}.")
        for name, batch in examples_of_step(config, step)
        for i, figure in enumerate(batch_grids(batch), start=1)
    )
    return write(pages, out)


def write(pictures: Iterable[Picture], out) -> list[epath.Path]:
    """Writes pictures to a directory, which is made if absent; returns their paths.

    Raises:
        UnwritableOutput: A picture cannot be written.
    """
    paths, out = [], epath.Path(out)
    for picture in pictures:
        suffix = "png" if isinstance(picture.drawn, Figure) else "gif"
        paths.append(out / f"{picture.name}.{suffix}")
        try:
            out.mkdir(parents=True, exist_ok=True)
            figures.save(picture.drawn, paths[-1])
        except OSError as error:
            raise UnwritableOutput(f"--out: {error}") from error
    return paths
