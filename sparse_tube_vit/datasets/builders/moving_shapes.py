"""`moving_shapes`: the embedded data sets, drawn here without any download.

`moving_shapes/images` holds 64x64 JPEGs of one main shape, labelled with the shape.
`moving_shapes/videos` holds 64x64 H.264 clips, 40 frames at 16 frames a second, in
which such a shape moves left, right, up or down, labelled with shape and motion.
`moving_shapes/crowds` holds such clips of one to three shapes, all different and with
different motions; all of them are labels.

A single frame does not reveal the motion: the picture is a torus and the start uniform
on it, so that before encoding frames have the same distribution for all motions. Nor
does change as such: clutter drifts in any direction. An image is drawn as a video of
one frame, so that shapes learnt from images are those of the videos.

Every example is a function of its split and number alone.
"""

import fractions
import io
import math
from collections.abc import Callable

import av
import numpy as np

from sparse_tube_vit.datasets.builders import builder

SEED = 2023
SIZE = 64  # pixels, height and width
FRAMES = 40
FPS = 16
KEY_FRAME_EVERY = 16
FINE = 4  # masks are drawn and moved in 1/FINE pixel, then averaged

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
MOTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x)
TEXTURES = ("solid", "stripes", "checker", "dots")

MOVING = tuple(f"{shape} {motion}" for shape in SHAPES for motion in MOTIONS)
CLASS_NAMES = {"images": SHAPES, "videos": MOVING, "crowds": MOVING}
COUNTS = {
    "images": {"train": 4200, "test": 480},
    "videos": {"train": 2400, "test": 480},
    "crowds": {"train": 480, "test": 120},
}


class MovingShapes(builder.Builder):
    """`moving_shapes/images`, `videos` or `crowds`."""

    name = "moving_shapes"
    KINDS = tuple(COUNTS)

    def __init__(self, *, config: str, data_dir):
        splits = {
            split: [_example(config, split, i) for i in range(count)]
            for split, count in COUNTS[config].items()
        }
        listing = builder.Listing(CLASS_NAMES[config], splits)
        super().__init__(listing=listing, data_dir=data_dir, config=config)
        self.kind = "image" if config == "images" else "video"
        self.multi_label = config == "crowds"

    @staticmethod
    def load(source: str) -> bytes:
        """Draws and encodes an example by its id."""
        kind, split, index = source.split("-")
        _, frames = render(kind, split, int(index))
        return (encode_jpeg if kind == "images" else encode_mp4)(frames)


def _example(kind: str, split: str, index: int) -> builder.ListedExample:
    name = f"{kind}-{split}-{index:05d}"
    labels = _begin(kind, split, index)[1]
    return builder.ListedExample(name, labels if kind == "crowds" else labels[0], name)


def _begin(kind: str, split: str, index: int):
    """Returns an example's generator, after drawing its labels, and the labels."""
    seed = [SEED, list(COUNTS).index(kind), list(COUNTS[kind]).index(split), index]
    rng = np.random.default_rng(seed)
    label = CLASS_NAMES[kind][index % len(CLASS_NAMES[kind])]
    return rng, _crowd(rng, label) if kind == "crowds" else (label,)


def render(kind: str, split: str, index: int) -> tuple[builder.Label, np.ndarray]:
    """Draws example `index` of a split; classes alternate.

    Args:
        kind: "images", "videos" or "crowds".
        split: "train" or "test".
        index: Any number from 0.

    Returns:
        The class name, or all class names of a crowd; and the frames (T, 64, 64, 3),
        uint8, T = 1 for an image.
    """
    rng, labels = _begin(kind, split, index)
    seconds = np.arange(1 if kind == "images" else FRAMES) / FPS

    # Shapes are brighter than the rest: a small model must learn them within minutes.
    ground, figure = rng.uniform(0.1, 0.3), rng.uniform(0.65, 0.9)  # luma
    background = _background(rng, ground)
    frames = np.repeat(background[None], len(seconds), axis=0)
    for i in range(rng.integers(4, 8)):
        # Half the clutter rests, half drifts slowly.
        angle, speed = rng.uniform(0, 2 * math.pi), rng.uniform(2, 8) * (i % 2)
        velocity = speed * np.array([math.sin(angle), math.cos(angle)])
        colour = _colour(rng, rng.uniform(0.1, 0.5))
        _draw(frames, _clutter(rng), colour[None], _path(rng, velocity, seconds))
    for each in labels:
        shape, _, motion = each.partition(" ")
        velocity = rng.uniform(12, 28) * np.array(MOTIONS.get(motion, (0, 0)))
        colours = np.stack(
            [_colour(rng, figure), _colour(rng, 0.8 * figure + 0.2 * ground)]
        )
        _draw(frames, _shape(rng, shape), colours, _path(rng, velocity, seconds))
    frames = (255 * frames.clip(0, 1) + 0.5).astype(np.uint8)
    return labels if kind == "crowds" else labels[0], frames


def _crowd(rng, first: str) -> tuple[str, ...]:
    """Returns `first` and up to two classes that share neither shape nor motion."""
    shape, motion = first.split()
    shapes = rng.permutation([s for s in SHAPES if s != shape])
    motions = rng.permutation([m for m in MOTIONS if m != motion])
    # With different motions, no shape stays hidden behind another.
    more = list(zip(shapes, motions, strict=False))[: rng.integers(3)]
    return (first, *(f"{s} {m}" for s, m in more))


def _path(rng, velocity, seconds) -> np.ndarray:
    """Returns positions from a uniform start, int (T, 2) in units of 1/FINE pixel."""
    start = rng.integers(0, FINE * SIZE, 2)
    return start + np.round(FINE * seconds[:, None] * velocity).astype(int)


def _draw(frames, masks, colours, path):
    """Draws a sprite into the frames, wrapping around the edges.

    Args:
        frames: Frames, float32 (T, SIZE, SIZE, 3), changed in place.
        masks: Disjoint masks of K colours, bool (K, FINE * n, FINE * n).
        colours: Colours, float32 (K, 3).
        path: Corners of the masks, int (T, 2) in units of 1/FINE pixel.
    """
    k, n = masks.shape[0], masks.shape[1] // FINE + 1
    pixel, phase = np.divmod(path, FINE)
    phases, of_frame = np.unique(phase @ (FINE, 1), return_inverse=True)
    covers = np.zeros((len(phases), k, n * FINE, n * FINE), np.float32)
    for cover, yx in zip(covers, phases, strict=True):
        y, x = divmod(yx, FINE)
        cover[:, y : y + masks.shape[1], x : x + masks.shape[2]] = masks
    covers = covers.reshape(-1, k, n, FINE, n, FINE).mean((3, 5))  # (P, K, n, n)
    paint = np.einsum("pkyx,kc->pyxc", covers, colours)
    alpha = covers.sum(1)[..., None]
    rows = (pixel[:, 0, None, None] + np.arange(n)[:, None]) % SIZE
    columns = (pixel[:, 1, None, None] + np.arange(n)) % SIZE
    at = np.arange(len(path))[:, None, None], rows, columns
    frames[at] = frames[at] * (1 - alpha)[of_frame] + paint[of_frame]


def _grid(half: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns y and x in pixels of a fine grid within `half` pixels of its centre."""
    n = FINE * int(np.ceil(half))
    points = (np.arange(-n, n, dtype=np.float32) + 0.5) / FINE
    return points[:, None], points[None, :]


def _rotated(y, x, angle):
    # math's floats keep float32 arrays float32, numpy's would not.
    sin, cos = math.sin(angle), math.cos(angle)
    return cos * y - sin * x, sin * y + cos * x


def _shape(rng, shape: str) -> np.ndarray:
    """Returns masks of a textured shape, 26 to 36 pixels across: bool (2, n, n)."""
    radius = rng.uniform(13, 18)
    y, x = _rotated(*_grid(radius), math.radians(rng.uniform(-12, 12)))
    mask = INSIDE[shape](y / radius, x / radius)
    pattern = _texture(rng, y, x)
    return np.stack([mask & ~pattern, mask & pattern])


def _polygon(y, x, points: int, waist: float):
    """Returns the inside of a star, its outer corners at radius 1, inner at `waist`."""
    half = math.pi / points
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    r = np.hypot(y, x)
    # Left of the edge from the outer corner (1, 0) to the inner corner.
    edge_x, edge_y = waist * math.cos(half) - 1, waist * math.sin(half)
    return edge_x * r * np.sin(angle) - edge_y * (r * np.cos(angle) - 1) > 0


# Functions of y (downwards) and x, in units of the radius, that return the inside.
INSIDE: dict[str, Callable] = {
    "circle": lambda y, x: np.hypot(y, x) < 1,
    "square": lambda y, x: np.maximum(abs(y), abs(x)) < 0.85,
    "triangle": lambda y, x: _polygon(y, x, 3, 0.5),
    "star": lambda y, x: _polygon(y, x, 5, 0.4),
    "cross": lambda y, x: (
        (np.minimum(abs(y), abs(x)) < 0.3) & (np.maximum(abs(y), abs(x)) < 0.95)
    ),
    "ring": lambda y, x: abs(np.hypot(y, x) - 0.79) < 0.21,
}


def _texture(rng, y, x) -> np.ndarray:
    """Returns the mask of the second colour, in a pattern fixed to the shape."""
    period, phase_y, phase_x = rng.uniform(5, 9), *rng.random(2).tolist()
    v, u = (y / period + phase_y) % 1 - 0.5, (x / period + phase_x) % 1 - 0.5
    match TEXTURES[rng.integers(len(TEXTURES))]:
        case "solid":
            return np.zeros(np.broadcast(y, x).shape, bool)
        case "stripes":
            return v > 0
        case "checker":
            return (v > 0) ^ (u > 0)
        case "dots":
            return np.hypot(v, u) < 0.3


def _clutter(rng) -> np.ndarray:
    """Returns the mask of a blob or a line, smaller than any shape: bool (1, n, n)."""
    length, width = rng.uniform(3, 9), rng.uniform(1, 2)
    if rng.random() < 0.5:
        length = width = rng.uniform(2, 4.5)
    y, x = _rotated(*_grid(max(length, width)), rng.uniform(0, math.pi))
    return (np.hypot(y / width, x / length) < 1)[None]


def _background(rng, luma: float) -> np.ndarray:
    """Returns three faint waves on a greyish colour, float32 (SIZE, SIZE, 3)."""
    colour = _colour(rng, luma, saturation=0.15)
    turn = np.arange(SIZE, dtype=np.float32) * (2 * math.pi / SIZE)
    ground = np.broadcast_to(colour, (SIZE, SIZE, 3)).copy()
    for amplitude in rng.uniform(0.02, 0.06, 3):
        # Whole numbers of periods, so that waves join at the edges.
        down, across = rng.integers(-6, 7, 2).tolist()
        phase = rng.uniform(0, 2 * math.pi)
        wave = np.sin(down * turn[:, None] + across * turn + phase)
        tint = 1 + 0.3 * rng.uniform(-1, 1, 3)
        ground += (amplitude * wave[..., None] * tint).astype(np.float32)
    return ground


def _colour(rng, luma: float, saturation: float = 0.6) -> np.ndarray:
    """Returns a colour of random hue and this luma, float32 (3,)."""
    weights = np.array([0.299, 0.587, 0.114])
    tint = rng.uniform(-1, 1, 3)
    tint -= weights @ tint
    # As much tint as keeps the colour within 0 to 1.
    room = np.where(tint > 0, 1 - luma, luma) / np.maximum(abs(tint), 1e-6)
    return (luma + min(saturation, room.min()) * tint).astype(np.float32)


def encode_jpeg(frames: np.ndarray) -> bytes:
    """Encodes a frame (1, H, W, 3), uint8, as a JPEG file."""
    codec = av.CodecContext.create("mjpeg", "w")
    codec.height, codec.width = frames.shape[1:3]
    codec.pix_fmt, codec.time_base = "yuvj420p", fractions.Fraction(1, FPS)
    codec.options = {"qmin": "2", "qmax": "2", "threads": "1", "flags": "+bitexact"}
    frame = av.VideoFrame.from_ndarray(frames[0], format="rgb24")
    packets = codec.encode(frame.reformat(format=codec.pix_fmt)) + codec.encode(None)
    return b"".join(map(bytes, packets))


def encode_mp4(frames: np.ndarray) -> bytes:
    """Encodes frames (T, H, W, 3), uint8, as H.264 in mp4, equal in every run."""
    # With more threads the bytes would depend on the machine, and with x264's
    # macroblock tree on the contents of memory: 2 of 12 clips differed between runs.
    options = {"preset": "superfast", "crf": "20", "threads": "1"}
    options["x264-params"] = "mbtree=0"
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = "yuv420p", KEY_FRAME_EVERY
        for frame in frames:
            frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
