"""A trained model, loaded to be used: `load`, and what the loaded model does.

It needs no config file, no data set and no mesh, and runs on one device of any kind.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sparse_tube_vit import storage
from sparse_tube_vit.checkpoints import image_vits, stored
from sparse_tube_vit.checkpoints.step import DamagedCheckpoint, NoCheckpoint, damaged
from sparse_tube_vit.config import ConfigDict, from_json, head_loss
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.inference import files, image_encoder, windows
from sparse_tube_vit.inference.clips import naming
from sparse_tube_vit.inference.predictions import Prediction, classes
from sparse_tube_vit.input import examples
from sparse_tube_vit.log import log
from sparse_tube_vit.models.scores import DIVERGED, NonFiniteScores, make_scores
from sparse_tube_vit.models.tubes import tubes_for
from sparse_tube_vit.models.tubevit import (
    TubeViT,
    UnknownHead,
    make_model,
    param_shapes,
)
from sparse_tube_vit.video.limits import Limits
from sparse_tube_vit.video.opening import kind_of


class AmbiguousHead(TubeViTError, ValueError):
    """No head, or several, were trained on inputs of this kind; one must be named."""


class NotAClip(TubeViTError, ValueError):
    """An array that is no image, no clip and no views of one."""


def load(
    path, step: int | None = None, ema: bool = True, normalization: str = ""
) -> "TrainedTubeViT":
    """Loads a trained model onto the default device.

    Args:
        path: A run's work directory, one step's directory below its `checkpoints`, or
            a release; local, at gs://, or hf://USER/NAME on the Hugging Face Hub; or
            "demo", the small model that comes with the package; or the weights of an
            image ViT, as for `init.weights`, see `image_encoder`.
        step: A step of a work directory; None for the latest.
        ema: Whether to read averaged parameters, if there are any. A release has only
            one kind.
        normalization: That of an image ViT's inputs, where its files do not tell or are
            wrong: "half", "imagenet" or "clip".

    Raises:
        InvalidConfig: `normalization` is none of these, or the model is no image ViT.
        NoCheckpoint, UnfinishedCheckpoint, ForeignCheckpoint, DamagedCheckpoint,
        NewerCheckpoint, UnreachableStorage: As `stored.locate`.
        UnreadableWeights, UnsupportedViT: As `image_vits.read`.
    """
    if image_vits.holds_image_vit(path):
        if step is not None:
            raise NoCheckpoint(f"{path} is an image ViT's weights, without steps.")
        source = image_encoder.read(path, normalization)
    else:
        image_vits.refuse_normalization(path, normalization)
        source = stored.read(path, step, ema)
    tubevit = from_stored(source)
    params = jax.device_put(tubevit.params, jax.local_devices()[0])
    return dataclasses.replace(tubevit, params=params)


def from_stored(source: stored.StoredModel) -> "TrainedTubeViT":
    """Returns a stored model to be used, its parameters as they are, on the host.

    Raises:
        DamagedCheckpoint: Its parameters are not those of its config.
    """
    config = from_json(source.description["config"])
    config.model.attention = "auto"  # the devices here may be others
    class_names = {
        h: tuple(names) for h, names in source.description["class_names"].items()
    }
    try:
        model = make_model(config, {h: len(names) for h, names in class_names.items()})
        check_params(source.params, model, source.name)
    except DamagedCheckpoint:
        raise
    except TubeViTError as error:  # of options that no run could be trained with
        raise damaged(source.name, f"its config makes no model: {error}") from error
    return TrainedTubeViT(
        source.name,
        source.step,
        config,
        class_names,
        model,
        source.params,
        source.averaged,
        source.why_headless,
    )


def check_params(params, model: TubeViT, name: str) -> None:
    """Raises DamagedCheckpoint unless these are the parameters of the model."""
    given = {k: x.shape for k, x in flatten_dict(params, sep="/").items()}
    blocks = {k.split("/")[1] for k in given if re.match(r"encoder/\w*block_", k)}
    layers = model.options.layers
    if len(blocks) != layers:  # before tracing as many
        raise damaged(name, f"it has {len(blocks)} layers, but its config {layers}")
    shapes = param_shapes(model)
    wanted = {k: x.shape for k, x in flatten_dict(shapes, sep="/").items()}
    wrong = [
        f"{k} has shape {given.get(k, '(missing)')}, expected {wanted.get(k, 'none')}"
        for k in sorted(wanted.keys() | given.keys())
        if wanted.get(k) != given.get(k)
    ]
    if wrong:
        raise DamagedCheckpoint(
            f"{name} is damaged: its parameters are not those of its config:\n  "
            + "\n  ".join(wrong[:10])
            + (f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        )


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a clip of T frames, or of an image (T = 1), in numpy.

    Attributes:
        pooled: (D,), the input of the heads.
        tokens: (N, D), of all tubes.
        tube: (N,), the index of each token's tube in `model.tubes`.
        time: (N,), the centre of each token in seconds from the clip's beginning.
        place: (N, 2), the centre of each token in pixels down and across.
    """

    pooled: np.ndarray
    tokens: np.ndarray
    tube: np.ndarray
    time: np.ndarray
    place: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainedTubeViT:
    """A model with its parameters and classes.

    Attributes:
        name: What was loaded, in words: "step 700 of runs/x".
        step: The number of optimizer steps that it was trained for.
        config: The config of its run; `config.clip` gives frames, rate and size.
        class_names: The class names of every head.
        model: A Flax Linen module.
        params: A nested dict of float32 arrays.
        averaged: Whether the parameters are a moving average of those in training.
        why_headless: Why the classifier of an image ViT is no head, if it has one.
    """

    name: str
    step: int
    config: ConfigDict
    class_names: dict[str, tuple[str, ...]]
    model: TubeViT
    params: dict
    averaged: bool
    why_headless: str = ""

    def __repr__(self):
        heads = ", ".join(f"{h} ({len(c)})" for h, c in self.class_names.items())
        return f"TubeViT of {self.name}; heads: {heads}"

    def predict(
        self,
        clip,
        head: str | None = None,
        top: int = 5,
        batch_size: int | None = None,
    ):
        """Returns the most probable classes of a clip or an image, or of several.

        Args:
            clip: A file's path, whose evaluation views are scored and combined; or
                uint8 in 0..255 or floats in [-1, 1]: an image (H, W, 3), a clip (T, H,
                W, 3), or views of a clip (V, T, H, W, 3) to be averaged. Or a list or
                other iterable of such, of any kinds.
            head: The head to use; None: the one that was trained on such inputs.
            top: The number of classes, or all if there are fewer.
            batch_size: Of several inputs, those that go through the model at a time,
                each with all its views; None: 4, or their number if that is smaller.

        Returns:
            [(class name, probability), ...], the most probable first. For several
            inputs, a list of such in their order, with duplicates; [] for none.

        Raises:
            UnknownHead, AmbiguousHead: `head` is wrong, or needed.
            UnreadableFile, UndecodableClip, NotAClip: There is no clip.
            ClipTooSmall, NoImageTube, PositionsMismatch: The model cannot read it.
            NonFiniteScores: The model's scores are not finite.
            IncompleteResults: One of these happened to some of several inputs. It is
                raised when all others are done, and has their results in `results`,
                None where there is none, and the reasons in `problems`.
        """
        if files.are_several(clip):
            inputs = list(clip)
            found = classes(self, inputs, head, top, batch_size=batch_size)
            return files.collect(found, len(inputs))
        kind, views = self.views_of(clip, head)
        head = self.choose_head(kind, head)
        (scores,) = self.scores(views[None], head)
        return self.best(scores, head, top)

    def windows(
        self,
        path,
        window: float,
        stride: float | None = None,
        head: str | None = None,
        top: int = 5,
        views: tuple[int, int] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Prediction]:
        """Yields the most probable classes of a video's sliding windows, in order.

        Each window is sampled as the evaluation samples a video of that length: one
        shorter than the model's clip loops. Windows begin at 0, `stride`, 2 `stride`
        seconds and so on; one that would run past the end is moved to end with the
        video, and a video that is shorter than a window is one window. The video is
        decoded once, from its encoded file in memory, and windows are computed in
        batches, as the caller takes them.

        Args:
            path: A video's path, local or gs://.
            window: Length of a window in seconds.
            stride: Seconds from one window's beginning to the next one's, at least
                0.01; None: `window`. What lies between windows if it is longer is left
                out.
            head: As for `predict`.
            top: As for `predict`.
            views: (temporal, spatial) views of each window; None: as in the head's
                evaluation.
            batch_size: Windows that go through the model at a time; None: 4.

        Yields:
            A `Prediction` for each window: `begin` and `end` in seconds, `classes`, and
            in `scores` the probabilities (C,) of all of them.

        Raises:
            InvalidWindow: `window` or `stride` is no number of seconds, or too small.
            UndecodableClip: The file does not decode, after the windows before the
                damage; or it is an image.
            TubeViTError: As `predict`.
        """
        options = windows.options_of_windows(self, window, stride, head, views)
        return windows.predict_video(self, path, *options, top, batch_size or 4)

    def read(
        self,
        path,
        head: str | None = None,
        views: tuple[int, int] | None = None,
        kind: str | None = None,
    ) -> tuple[str, np.ndarray]:
        """Reads a file as the evaluation of its head does.

        Args:
            path: A clip in any container or an image, local or gs://.
            head: As for `predict`; not used with `views`.
            views: (temporal, spatial) views of videos in place of the evaluation's.
            kind: "image" or "video", as in a data set of one kind: of an animation,
                "image" reads the first picture. None: `opening.kind_of`.

        Returns:
            (kind, views): the kind, and uint8 (V, T, H, W, 3).

        Raises:
            TubeViTError: As `predict`.
        """
        with naming(path):
            encoded = storage.read_file(path)
            kind = kind or kind_of(encoded, self._limits, path)
            return kind, self.example(kind, head, views).read(encoded, None)["video"]

    def example(
        self,
        kind: str,
        head: str | None = None,
        views: tuple[int, int] | None = None,
    ) -> examples.EvaluationExample:
        """Returns the map from files of a kind to views; arguments as for `read`."""
        if views:
            source = examples.unlabelled(kind, *views)
        else:
            source = self.protocol(kind, self.choose_head(kind, head))
        config = self.config
        example = examples.EvaluationExample.of(config.clip, config.loader, source)
        return dataclasses.replace(example, limits=self._limits)

    @property
    def _limits(self):
        # A config's limit of CPU time is for clips; the default is for whole videos.
        of_clips = Limits.of(self.config.loader)
        return dataclasses.replace(of_clips, cpu_seconds=Limits.cpu_seconds)

    def as_views(self, clip) -> tuple[str, np.ndarray]:
        """Returns (kind, views (V, T, H, W, 3)) of an array, as for `predict`.

        Raises:
            NotAClip: It is no such array.
        """
        views = _views(clip, self.model.clip)
        return _kind(views), views

    def views_of(
        self, clip, head: str | None = None, views: tuple[int, int] | None = None
    ) -> tuple[str, np.ndarray]:
        """Returns `read` of a path, or `as_views` of an array."""
        if files.is_path(clip):
            return self.read(clip, head, views)
        return self.as_views(clip)

    def best(self, scores, head: str, top: int):
        """Returns [(class name, probability), ...] of the highest scores (C,)."""
        order = np.argsort(-scores, kind="stable")[:top]
        return [(self.class_names[head][i], float(scores[i])) for i in order]

    def scores(self, videos, head: str) -> np.ndarray:
        """Computes probabilities (B, C) float32, combined over views.

        Views are combined as in the head's evaluation, by default averaged. The program
        is that of `evaluate`, compiled once for every shape.

        Args:
            videos: uint8 or floats (B, V, T, H, W, 3), V views of each of B inputs.
            head: The head to use.
        """
        head = self.choose_head(_kind(videos), head)
        protocol = self.protocol(_kind(videos), head)
        options = protocol.stride_scale, protocol.combine_views
        return self._finite(self._scores(head, *options)(self.params, videos))

    def features(self, clip, batch_size: int | None = None):
        """Computes the features of a clip or an image, for retrieval and probes.

        Args:
            clip: A file's path, whose central view is read; or an image (H, W, 3) or a
                clip (T, H, W, 3), as for `predict`. Or a list or other iterable.
            batch_size: As for `predict`.

        Returns:
            `Features`; a list of them for several inputs.

        Raises:
            TubeViTError: As `predict`.
        """
        if files.are_several(clip):
            inputs = list(clip)
            computed = files.compute(
                inputs,
                self._central_view,
                lambda _, videos: self.features_of(videos),
                batch_size,
            )
            return files.collect(computed, len(inputs))
        _, views = self._central_view(clip)
        return self.features_of(views[None])[0]

    def _central_view(self, clip):
        """Returns a group, as for `files.compute`, and views (1, T, H, W, 3)."""
        kind, views = self.views_of(clip, views=(1, 1))
        if len(views) > 1:
            raise NotAClip(f"Features are of one view, but there are {len(views)}.")
        return (kind, views.dtype.str), views

    def features_of(self, videos: np.ndarray) -> list[Features]:
        """Computes the features of views (B, 1, T, H, W, 3), one of each of B clips."""
        size = videos.shape[2:5]
        out = jax.tree.map(self._finite, self._features(self.params, videos[:, 0]))
        chosen = tubes_for(self.model.tubes, size[0])
        centres = [self.model.tubes[i].centres(size) for i in chosen]
        middle = np.concatenate(centres)  # (N, 3)
        return [
            Features(
                pooled=pooled,
                tokens=tokens,
                tube=np.repeat(chosen, [len(c) for c in centres]),
                time=middle[:, 0] / self.config.clip.fps,
                place=middle[:, 1:],
            )
            for pooled, tokens in zip(out["pooled"], out["tokens"], strict=True)
        ]

    def pooled(self, videos) -> np.ndarray:
        """Computes pooled features (B, D) of (B, V, T, H, W, 3), averaged over V."""
        return self._finite(self._pooled(self.params, videos))

    def _finite(self, x) -> np.ndarray:
        """Returns what the model computed, (B, ...), if all of it is finite."""
        x = np.asarray(x)
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise NonFiniteScores(
                f"{self.name}: its output is not finite for {(~finite).sum()} of "
                f"{len(x)} inputs. Floats given have to be finite. {DIVERGED}"
            )
        return x

    def choose_head(self, kind: str, head: str | None = None) -> str:
        """Returns the head for inputs of a kind, "image" or "video", or the one named.

        Raises:
            UnknownHead: The model has no such head.
            AmbiguousHead: None, or several heads were trained on inputs of that kind.
        """
        if not self.class_names:
            why = f": {self.why_headless}" if self.why_headless else ""
            raise UnknownHead(
                f"{self.name} has no head to predict with, features alone{why}. Train "
                "one: configs/finetune.py with --config.init.weights."
            )
        if head is not None:
            if head not in self.class_names:
                raise UnknownHead(
                    f"The model has no head {head!r}; it has "
                    f"{', '.join(self.class_names)}."
                )
            return head
        streams = self.config.streams.values()
        heads = sorted({s.head for s in streams if s.kind == kind})
        if len(heads) != 1:
            trained = f"for the heads {', '.join(heads)}" if heads else "for no head"
            raise AmbiguousHead(
                f"{self.name} was trained on {kind}s {trained}: name one of its heads, "
                f"{', '.join(self.class_names)}."
            )
        return heads[0]

    def protocol(self, kind: str, head: str) -> ConfigDict:
        """Returns the config of a head's evaluation on inputs of a kind.

        If there are several: one with training's strides before others, then that of
        most views, then the first by name. If there is none: one view.
        """
        matching = [
            source
            for source in self.config.evaluations.values()
            if (source.kind, source.head) == (kind, head)
        ]
        others = examples.unlabelled(kind)

        def order(source):
            views = source.temporal_views * source.spatial_views
            return source.stride_scale != 1, -views

        return min(matching, key=order, default=others)

    @functools.cached_property
    def _programs(self):
        return {}

    def _scores(self, head, stride_scale, combine):
        key = head, stride_scale, combine
        if key not in self._programs:
            log.info("Compiling the model with head %s ...", head)
            model = self.model.restride(stride_scale)
            loss = head_loss(self.config, head)
            self._programs[key] = jax.jit(make_scores(model, head, loss, combine))
        return self._programs[key]

    @functools.cached_property
    def _features(self):
        log.info("Compiling the model without heads ...")

        def features(params, clips):
            out = self.model.apply({"params": params}, clips, method="features")
            return jax.tree.map(lambda x: x.astype(jnp.float32), out)

        return jax.jit(features)

    @functools.cached_property
    def _pooled(self):
        def pooled(params, videos):
            def of_view(clips):
                return self._features(params, clips)["pooled"]

            return jax.lax.map(of_view, videos.swapaxes(0, 1)).mean(axis=0)

        return jax.jit(pooled)


def _kind(videos):
    """Returns the kind of views (..., T, H, W, 3)."""
    return "image" if videos.shape[-4] == 1 else "video"


def _views(clip, size):
    """Returns views (V, T, H, W, 3) of an image, a clip, or views of one.

    Args:
        clip: An array.
        size: The (T, H, W) of the model's clips; images have one frame.
    """
    try:
        clip = np.asarray(clip)
    except ValueError as error:  # a nested list of parts that differ
        raise NotAClip(f"Not an array of pixels: {error}") from error
    if not clip.ndim:
        raise NotAClip(
            "Expected a path, an image (H, W, 3), a clip (T, H, W, 3) or its views, or "
            f"several of them, not {type(clip.item()).__name__}."
        )
    if clip.ndim not in (3, 4, 5) or clip.shape[-1] != 3:
        raise NotAClip(
            "Expected an image (H, W, 3), a clip (T, H, W, 3) or its views (V, T, H, "
            f"W, 3), not an array of shape {clip.shape}."
        )
    views = clip.reshape((1,) * (5 - clip.ndim) + clip.shape)
    frames, *rest = views.shape[1:4]
    if frames not in (1, size[0]) or rest != [*size[1:]]:
        raise NotAClip(
            f"The model reads clips of {size[0]} frames and images, of {size[1]}x"
            f"{size[2]} pixels, not an array of shape {clip.shape}. read_clip and "
            "read_image give such arrays, sampled as in evaluation."
        )
    _check_values(views)
    return views


def _check_values(views):
    """Raises NotAClip for values that are uint8 or in [-1, 1] by mistake alone."""
    if views.dtype == np.uint8:
        return
    if not np.issubdtype(views.dtype, np.floating):
        raise NotAClip(
            "Expected uint8 in 0..255 or floats in [-1, 1], not an array of "
            f"{views.dtype}."
        )
    if not np.isfinite(views).all():
        raise NotAClip(
            "Expected floats in [-1, 1], black to white, but some are NaN or infinite."
        )
    low, high = float(views.min()), float(views.max())
    advice = ""
    if low >= 0 and 0 < high <= 1:
        advice = "2 * clip - 1 maps [0, 1] there"
    elif not -1.001 <= low <= high <= 1.001:
        advice = "convert 0..255 to uint8, or clip / 127.5 - 1 maps it there"
    if advice:
        raise NotAClip(
            f"Expected floats in [-1, 1], black to white, not in [{low:.3g}, "
            f"{high:.3g}]: {advice}."
        )
