"""What a training run has to show, read as far as it is asked for."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath
from matplotlib.animation import Animation
from matplotlib.figure import Figure

from sparse_tube_vit import figures, storage
from sparse_tube_vit.config import ConfigDict
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.figures.confusion import confusion_of
from sparse_tube_vit.inference import clips
from sparse_tube_vit.inference.loaded import TrainedTubeViT, load
from sparse_tube_vit.inference.rollout import attention_shares
from sparse_tube_vit.input import examples
from sparse_tube_vit.models.tubevit import TubeViT
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.training.reporting import read_metrics


class NothingToDraw(TubeViTError, ValueError):
    """A run lacks what a picture shows."""


@dataclasses.dataclass
class Run:
    """A run, finished or not: what its work directory says.

    Attributes:
      workdir: of training; of a model alone, whatever `load` takes.
      clip_file: a video or image to draw on; by default the first of an evaluation.
      data_dir: of prepared data sets, where it is not that of the config.
    """

    workdir: epath.Path
    clip_file: str | None = None
    data_dir: str | None = None

    def __post_init__(self):
        self.workdir = epath.Path(self.workdir)

    @functools.cached_property
    def trained(self) -> TrainedTubeViT:
        """The model of the latest checkpoint. Raises: as `load`."""
        trained = load(self.workdir)
        if self.data_dir:
            trained.config.data_dir = self.data_dir
        return trained

    @property
    def config(self) -> ConfigDict:
        return self.trained.config

    @property
    def model(self) -> TubeViT:
        return self.trained.model

    @property
    def params(self) -> dict:
        return self.trained.params

    @functools.cached_property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl; none where the parameters were only written."""
        there = (self.workdir / "metrics.jsonl").exists()
        return read_metrics(self.workdir) if there else []

    @functools.cached_property
    def evaluations(self) -> dict[str, dict]:
        """The last result of every protocol, as its JSON file holds it, by its name."""
        last = {}
        for path in sorted((self.workdir / "evaluations").glob("*.json")):
            result = json.loads(path.read_text())
            protocol = re.sub(r"_step\d+", "", path.stem)
            if protocol not in last or result["step"] > last[protocol][1]["step"]:
                last[protocol] = path.stem, result
        return dict(last.values())

    @functools.cached_property
    def clip(self) -> np.ndarray:
        """(T, H, W, 3) uint8, as `read_clip`."""
        return read_clip(self.config, self.clip_file)


def read_clip(config: ConfigDict, file: str | None = None) -> np.ndarray:
    """One view (T, H, W, 3) of a file, or of the first example that a config evaluates.

    Raises:
      UnreadableFile, UndecodableClip; the errors of data sets.
    """
    if file is not None:
        with clips.naming(file):
            kind = clips.kind_of(storage.read_file(file))
        if kind == "video":
            return clips.read_clip(file, config)
        return clips.read_image(file, config)[None]
    sources = [*config.evaluations.values(), *config.streams.values()]
    source = min(sources, key=lambda source: source.kind != "video")
    split = reading.open_split(source.dataset, source.split, config.data_dir)
    example = examples.EvaluationExample.of(config.clip, source)
    return example.read(split[0][source.kind], None)["video"][0]


Pictures = Iterator[tuple[str, Figure | Animation]]


def curves(run: Run) -> Pictures:
    """Loss and accuracy, and throughput, against steps."""
    if run.metrics:
        yield "training_curves", figures.training_curves(run.metrics)
    if any("train/clips_per_second" in line for line in run.metrics):
        yield "throughput", figures.throughput(run.metrics)


def tubes(run: Run) -> Pictures:
    """The tubes over a clip, still and animated."""
    yield from tubes_over(run.clip, run.config)


def tubes_over(clip: np.ndarray, config: ConfigDict) -> Pictures:
    """A config's tubes over a clip (T, H, W, 3): still and, of a video, animated."""
    chosen = make_tubes(config.model.tubes)
    yield "tubes", figures.tube_layout(clip, chosen)
    if len(clip) > 1:
        yield "tubes_animated", figures.tube_animation(clip, chosen, config.clip.fps)


def kernels(run: Run) -> Pictures:
    """Learned filters of every tube."""
    for name, parameters in run.params["stem"].items():  # tube_0, ... or shared
        kernel = np.asarray(parameters["kernel"])
        size = "x".join(map(str, kernel.shape[:3]))
        name = f"kernels_{name.removeprefix('tube_')}_{size}"
        yield name, figures.kernels(kernel)


def positions(run: Run) -> Pictures:
    """How alike position embeddings are."""
    if run.model.positions != "none":
        clip = run.model.clip
        if all(source.kind == "image" for source in run.config.streams.values()):
            clip = (1, *clip[1:])
        embeddings = run.model.apply(
            {"params": run.params}, clip, method=lambda model, clip: model.place(clip)
        )
        yield (
            "positions",
            figures.position_similarity(np.asarray(embeddings), run.model.tubes, clip),
        )


def attention(run: Run) -> Pictures:
    """What pooling looks at, and what roll-out traces that to, in a clip."""
    shares = attention_shares(run.model, run.params, run.clip[None])
    titles = {"pooling": "attention of the pooling", "rollout": "attention roll-out"}
    for kind, title in titles.items():
        share = np.asarray(jax.device_get(shares[kind][0]))
        yield (
            f"attention_{kind}",
            figures.attention(run.clip, run.model.tubes, share, title),
        )


def confusion(run: Run) -> Pictures:
    """Confusion matrices of the last evaluations with one label an example."""
    for name, e in run.evaluations.items():
        if "confusion" in e:
            yield f"{name}_confusion", confusion_of(e)


def tokens(*runs: Run) -> Pictures:
    """Accuracy against the number of tokens, of one run or of several."""
    results = {str(run.workdir): [*run.evaluations.values()] for run in runs}
    counts = {(e["evaluation"], e["tokens"]) for es in results.values() for e in es}
    if len(counts) > len({evaluation for evaluation, _ in counts}):
        yield "tokens", figures.accuracy_by_tokens(results)


KINDS: dict[str, Callable[..., Pictures]] = {
    "curves": curves,
    "tubes": tubes,
    "kernels": kernels,
    "positions": positions,
    "attention": attention,
    "confusion": confusion,
    "tokens": tokens,
}
