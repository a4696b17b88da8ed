"""Timing of the decoding of a clip, beside other libraries with the same frames."""

import dataclasses
import io
import statistics
import time

import av
import cv2
import numpy as np

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.inference.clips import naming
from sparse_tube_vit.input.augment import flip
from sparse_tube_vit.input.randaugment import rand_augment
from sparse_tube_vit.storage import read_file
from sparse_tube_vit.video.decode import decode
from sparse_tube_vit.video.opening import opened
from sparse_tube_vit.video.sampling import random_crop


class UnusableDecoder(TubeViTError, RuntimeError):
    """A library of `--beside` is not installed, or does not decode the file."""


class TooFewFrames(TubeViTError, ValueError):
    """The file has fewer frames than the clip needs."""


@dataclasses.dataclass(frozen=True)
class File:
    """An encoded file and its key frames.

    Attributes:
        path: Path of the file.
        data: Encoded file.
        frames: Number of frames.
        rate: Frames a second.
        keys: (frame number, presentation time in ticks) of every key frame.
    """

    path: str
    data: bytes
    frames: int
    rate: float
    keys: list[tuple[int, int]]

    @classmethod
    def read(cls, path: str) -> "File":
        """Reads a file and its packets.

        Raises:
            UnreadableFile: The file cannot be read.
            UndecodableClip: The file holds no video.
        """
        data = read_file(path)
        with opened(data) as video:
            packets, rate = video.packets, float(video.stream.average_rate)
            shown = sorted(p.pts for p in packets)
            keys = [(shown.index(p.pts), p.pts) for p in packets if p.is_keyframe]
        return cls(path, data, len(shown), rate, keys)


def frames_alone(file: File, numbers: np.ndarray):
    """Yields (number, PyAV frame), from the key frame before the first on."""
    key, key_time = max(key for key in file.keys if key[0] <= numbers[0])
    with av.open(io.BytesIO(file.data)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        if key:
            container.seek(key_time, stream=stream)
        # `zip` asks the range first, so that no frame is decoded past its end.
        yield from zip(
            range(key, numbers[-1] + 1), container.decode(stream), strict=False
        )


def limit(file: File, numbers: np.ndarray) -> None:
    """Decodes up to the last of the frames, without converting them."""
    for _ in frames_alone(file, numbers):
        pass


def pyav(file: File, numbers: np.ndarray) -> np.ndarray:
    wanted = set(numbers.tolist())
    frames = frames_alone(file, numbers)
    return np.stack([f.to_ndarray(format="rgb24") for i, f in frames if i in wanted])


def opencv(file: File, numbers: np.ndarray) -> np.ndarray:
    one_thread = (cv2.CAP_PROP_N_THREADS, 1)
    video = cv2.VideoCapture(file.path, cv2.CAP_FFMPEG, one_thread)
    try:
        video.set(cv2.CAP_PROP_POS_FRAMES, int(numbers[0]))
        wanted, clip = set(numbers.tolist()), []
        for number in range(numbers[0], numbers[-1] + 1):
            video.grab()
            if number in wanted:
                clip.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
        return np.stack(clip)
    finally:
        video.release()


def decord(file: File, numbers: np.ndarray) -> np.ndarray:
    from decord import VideoReader

    reader = VideoReader(io.BytesIO(file.data), num_threads=1)
    return reader.get_batch(numbers).asnumpy()


def torchcodec(file: File, numbers: np.ndarray) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(file.data, dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(numbers.tolist()).data.numpy()


#: Functions of a file and frame numbers (T,) that return frames (T, H, W, 3), uint8, on
#: one thread.
DECODERS = {
    function.__name__: function for function in (pyav, opencv, decord, torchcodec)
}


def time_decode(args) -> None:
    """Prints milliseconds of CPU time to decode a clip, beside other libraries.

    Raises:
        UnreadableFile: The file cannot be read.
        UndecodableClip: The file does not decode.
        TooFewFrames: The file has fewer frames than the clip needs.
        UnusableDecoder: A library of `args.beside` fails.
    """
    with naming(args.file):
        file = File.read(args.file)
    span = (args.frames - 1) * args.stride + 1
    if file.frames < span + (args.start or 0):
        raise TooFewFrames(
            f"{args.file} has {file.frames} frames; {args.frames} at stride "
            f"{args.stride} take {span}. Change --frames, --stride or --start."
        )

    def ours(file, numbers, rng):
        clip, _ = decode(
            file.data,
            lambda duration: (numbers + 0.5) / file.rate,
            lambda h, w: random_crop(rng, h, w, args.size, (0.3, 1.0)),
        )
        return clip

    def augmented(file, numbers, rng):
        clip = flip(rng, ours(file, numbers, rng))
        return rand_augment(rng, clip, args.randaugment, 10.0)

    first = np.arange(args.frames) * args.stride
    with naming(args.file):
        ours(file, first, np.random.default_rng(0))
    ways = {
        "decoding alone": lambda file, numbers, rng: limit(file, numbers),
        "ours": ours,
    }
    if args.randaugment:
        ways[f"ours, RandAugment of {args.randaugment} layers"] = augmented
    for name in args.beside:
        function = DECODERS[name]
        try:
            function(file, first)
        except Exception as error:  # whatever a library raises
            raise UnusableDecoder(
                f"{name} does not decode {args.file} here: "
                f"{type(error).__name__}: {error}"
            ) from error
        ways[name] = lambda file, numbers, rng, function=function: function(
            file, numbers
        )
    times = {name: [] for name in ways}
    for run in range(args.runs + 1):
        start = args.start
        if start is None:
            start = np.random.default_rng(run).integers(file.frames - span + 1)
        numbers = start + np.arange(args.frames) * args.stride
        # In turns, so that a change of the machine's speed affects all alike.
        for name, way in ways.items():
            rng = np.random.default_rng(run)
            started = time.process_time()
            way(file, numbers, rng)
            times[name].append(time.process_time() - started)
    where = "a random frame" if args.start is None else f"frame {args.start}"
    print(
        f"{args.file}: {args.frames} frames at stride {args.stride} from {where}; "
        f"milliseconds of CPU time, medians of {args.runs} runs"
    )
    bare = times["decoding alone"][1:]  # the first warms up
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken[1:], bare, strict=True))
        print(f"  {name:32} {1e3 * statistics.median(taken[1:]):7.1f} {ratio:6.2f}")
