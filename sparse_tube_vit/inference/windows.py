"""Predictions for the sliding windows of long videos."""

import concurrent.futures
import functools
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.inference.clips import naming
from sparse_tube_vit.inference.predictions import Prediction
from sparse_tube_vit.log import log
from sparse_tube_vit.storage import read_file
from sparse_tube_vit.video.opening import kind_by_name

if TYPE_CHECKING:  # which imports this module
    from sparse_tube_vit.inference.loaded import TrainedTubeViT

#: Least stride in seconds: a slip of the unit would give millions of windows.
LEAST_STRIDE = 0.01


class InvalidWindow(TubeViTError, ValueError):
    """A window's length or stride that is no number of seconds, or too small."""


def check_window(window: float, stride: float) -> None:
    """Raises InvalidWindow unless these are lengths in seconds."""
    for name, seconds, is_valid, rule in (
        ("window", window, window > 0, "more than 0"),
        ("stride", stride, stride >= LEAST_STRIDE, f"at least {LEAST_STRIDE}"),
    ):
        if not (is_valid and math.isfinite(seconds)):
            raise InvalidWindow(
                f"A {name} of {seconds} seconds: it must be {rule}, and finite."
            )


def spans(
    window: float, stride: float, duration: float, frame: float
) -> list[tuple[float, float]]:
    """Returns starts and ends of the windows of a video, all in seconds.

    Args:
        window: Length of a window.
        stride: From one start to the next.
        duration: Duration of the video.
        frame: Time between two frames of a clip. A remainder at the video's end that
            is shorter gets no window.
    """
    found, end = [], 0.0
    for i in itertools.count():
        begin = i * stride
        if found and max(begin, end) > duration - frame:
            return found
        end = begin + window
        if end > duration:
            begin, end = max(0.0, duration - window), duration
        found.append((begin, end))


def predict_windows(
    tubevit: "TrainedTubeViT",
    paths: Sequence[str],
    window: float,
    stride: float | None = None,
    head: str | None = None,
    top: int = 5,
    views: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> Iterator[Prediction]:
    """Yields the classes of the windows of videos, one video after the other.

    A video that cannot be read, or not to its end, gives a prediction with a problem.

    Args:
        tubevit: A loaded model.
        paths: Files, as of `files.expand`.
        window, stride, head, top, views, batch_size: As for `TrainedTubeViT.windows`.

    Raises:
        InvalidWindow, UnknownHead, AmbiguousHead: As `TrainedTubeViT.windows`.
    """
    options = options_of_windows(tubevit, window, stride, head, views)

    def every():
        for path in paths:
            try:
                yield from predict_video(tubevit, path, *options, top, batch_size or 4)
            except TubeViTError as error:
                problem = str(error).removeprefix(f"{path}: ")
                yield Prediction(path, problem=problem)

    return every()


def options_of_windows(tubevit: "TrainedTubeViT", window, stride, head, views):
    """Returns (spans of a duration, head, example map), as `predict_video` takes them.

    Arguments and errors are those of `TrainedTubeViT.windows`.
    """
    stride = window if stride is None else stride
    check_window(window, stride)
    head = tubevit.choose_head("video", head)
    clip = tubevit.config.clip
    if window <= (clip.frames - 1) / clip.fps:
        log.warning(
            "A window of %g s is shorter than the model's clips of %g s: it loops",
            window,
            clip.frames / clip.fps,
        )
    example = tubevit.example("video", head, views)
    return (
        functools.partial(spans, window, stride, frame=1 / clip.fps),
        head,
        example,
    )


def predict_video(tubevit, path, spans_of, head, example, top, batch_size):
    """Yields the predictions for a video's windows.

    Later batches are padded to the size of the first.

    Args:
        tubevit, path, top, batch_size: As for `TrainedTubeViT.windows`.
        spans_of, head, example: As `options_of_windows` returns them.
    """

    def clips():
        yield from example.read_spans(read_file(path), spans_of, kind_by_name(path))

    size = None
    for batch, error in _ahead(clips(), batch_size):
        size = size or len(batch)
        videos = [video for _, video in batch]
        videos += videos[-1:] * (size - len(batch))
        with naming(path):
            scores = tubevit.scores(np.stack(videos), head) if batch else []
            for ((begin, end), _), s in zip(batch, scores, strict=False):
                best = tuple(tubevit.best(s, head, top))
                yield Prediction(
                    os.fspath(path), "video", head, best, "", begin, end, s
                )
            if error:
                raise error


def _ahead(items, size):
    """Yields (batch, error or None) of an iterator's items, one batch read ahead.

    One thread takes them all, so that its CPU time is that of decoding.
    """

    def take():
        batch = []
        try:
            for item in itertools.islice(items, size):
                batch.append(item)
        except TubeViTError as error:
            return batch, error
        return batch, None

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        following = executor.submit(take)
        while following:
            batch, error = following.result()
            ended = error or len(batch) < size
            following = None if ended else executor.submit(take)
            yield batch, error
