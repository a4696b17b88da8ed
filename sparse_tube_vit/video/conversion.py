"""Conversion of FFmpeg's frames to upright RGB, cropped and scaled."""

import dataclasses
from collections.abc import Callable

import av
import numpy as np
from av.filter import Graph
from av.sidedata import sidedata

from sparse_tube_vit.video.limits import UndecodableClip

# Pixel formats of 8 bits of luma and chroma in planes; "j": full range, as in JPEG.
PLANAR = {f"yuv{j}{layout}p" for j in ("", "j") for layout in (420, 422, 444)}

# Matrices (numbers of ITU-T H.273) that FFmpeg's scaler does not convert: other models
# are refused, constant luminance is read as BT.2020, 12 and 13 follow the primaries,
# and YCgCo goes through the filter `colorspace`.
OTHER_MODELS = {11: "YDzDx", 14: "ICtCp", 15: "IPT-PQ-C2"}
OTHER_MODELS |= {16: "YCgCo-Re", 17: "YCgCo-Ro"}
CONSTANT_LUMINANCE, BT2020, BT709, FROM_PRIMARIES = 10, 9, 1, (12, 13)
MATRIX_OF_PRIMARIES = {6: 7, 7: 7, 9: BT2020}  # 6 and 7 are of SMPTE 170M and 240M
YCGCO, YCGCO_TO_BT709 = 8, "ispace=ycgco:iprimaries=bt709:itrc=bt709:all=bt709"

# Limit between a picture's sides: beyond it, scaling the short side to 224 pixels makes
# the long one thousands of pixels.
MAX_ASPECT = 20


@dataclasses.dataclass(frozen=True)
class Crop:
    """A rectangle of the upright picture, and the size it is scaled to, in pixels."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int

    def rescaled(self, size: tuple[int, int], other: tuple[int, int]) -> "Crop":
        """Returns this crop of a picture (height, width) for one of another size."""
        (height, width), (other_height, other_width) = size, other
        top, left = self.top * other_height // height, self.left * other_width // width
        # Rounded up, so that no crop is empty.
        bottom = -(-(self.top + self.height) * other_height // height)
        right = -(-(self.left + self.width) * other_width // width)
        return dataclasses.replace(
            self, top=top, left=left, height=bottom - top, width=right - left
        )


@dataclasses.dataclass(frozen=True)
class Orientation:
    """The storage order of a picture, relative to the upright one.

    Attributes:
        swapped: Rows are stored as columns.
        flipped: The rows of the upright picture are reversed.
        mirrored: The columns of the upright picture are reversed.
    """

    swapped: bool = False
    flipped: bool = False
    mirrored: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """Returns the orientation by the frame's display matrix, in quarter turns."""
        matrix = _display_matrix(frame)
        if matrix is None:
            return cls()
        (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3)
        # Upright x = a x + c y of the stored picture, upright y = b x + d y.
        swapped = max(abs(a), abs(d)) < max(abs(b), abs(c))
        return cls(swapped, (b if swapped else d) < 0, (c if swapped else a) < 0)

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """Returns a view of a stored picture (H, W, 3) as upright."""
        if self.swapped:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]

    def stored(self, crop: Crop, height: int, width: int) -> Crop:
        """Returns a crop of the upright picture (height, width) on the stored one."""
        top, left = crop.top, crop.left
        if self.flipped:
            top = height - top - crop.height
        if self.mirrored:
            left = width - left - crop.width
        crop = dataclasses.replace(crop, top=top, left=left)
        if not self.swapped:
            return crop
        return Crop(left, top, crop.width, crop.height, crop.out_width, crop.out_height)


class ToRgb:
    """Crops, scales and converts frames to upright RGB, uint8 (H, W, 3).

    Args:
        video: The open file, an `opening.Video`.
        choose_crop: As `crop` of `decode.decode`.
    """

    def __init__(self, video, choose_crop: Callable[[int, int], Crop]):
        self.time_base, self.pixel_aspect = video.stream.time_base, video.pixel_aspect
        self.choose_crop, self.layout = choose_crop, None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns the crop of a frame, in memory that the next call may reuse.

        Raises:
            UndecodableClip: The picture is too long, or changes its size.
        """
        layout = (frame.width, frame.height, frame.format.name)
        if layout != self.layout:  # the first frame, or a change within the stream
            self._configure(frame)
            self.layout = layout
        self.graph.vpush(frame)
        plane = self.graph.vpull().planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # padded
        picture = rows[:, : plane.width * 3].reshape(plane.height, plane.width, 3)
        return self.orientation.upright(picture)

    def _configure(self, frame):
        self.orientation = Orientation.of(frame)
        displayed = _in_square_pixels(frame, self.pixel_aspect)
        upright = displayed[:: -1 if self.orientation.swapped else 1]
        if max(upright) > MAX_ASPECT * min(upright):
            raise UndecodableClip(
                f"It has {upright[0]} x {upright[1]} pixels, one side more than "
                f"{MAX_ASPECT} times the other."
            )
        if self.layout is None:
            self.crop = self.choose_crop(*upright)
            self.chosen_on = upright
        elif upright != self.chosen_on:
            raise UndecodableClip(
                f"Its size changes from {self.chosen_on} to {upright}."
            )
        c = self.orientation.stored(self.crop, *upright)
        c = c.rescaled(displayed, (frame.height, frame.width))
        # Pixels that share their chroma must stay together.
        left = c.left - c.left % (4 // frame.format.chroma_width(4))
        top = c.top - c.top % (4 // frame.format.chroma_height(4))
        # Scaling first and then converting is up to 3 times as fast as both at once.
        scaled = frame.format.name if frame.format.name in PLANAR else "rgb24"
        filters = (
            ("crop", f"{c.width}:{c.height}:{left}:{top}:exact=1"),
            ("scale", f"{c.out_width}:{c.out_height}:flags=bilinear"),
            ("format", f"pix_fmts={scaled}"),
            ("scale", ""),
            ("format", "pix_fmts=rgb24"),
        )
        self.graph = filter_graph(frame, self.time_base, filters)


def _in_square_pixels(frame, pixel_aspect):
    """Returns height and width of a stored picture as displayed, never smaller."""
    if pixel_aspect > 1:
        return frame.height, round(frame.width * pixel_aspect)
    return round(frame.height / pixel_aspect), frame.width


def convertible(frame):
    """Returns a frame with a matrix from RGB to YCbCr that FFmpeg converts."""
    matrix = int(frame.colorspace)
    if matrix in OTHER_MODELS:
        raise UndecodableClip(
            f"Its colours are stored as {OTHER_MODELS[matrix]}, which FFmpeg cannot "
            "convert to RGB."
        )
    if matrix == CONSTANT_LUMINANCE:
        frame.colorspace = BT2020
    if matrix in FROM_PRIMARIES:
        primaries = int(frame.color_primaries)
        frame.colorspace = MATRIX_OF_PRIMARIES.get(primaries, BT709)
    return frame


def filter_graph(frame: av.VideoFrame, time_base, filters) -> Graph:
    """Returns a graph that filters frames of the layout of `frame`, on one thread.

    Args:
        frame: A frame.
        time_base: Seconds a tick of the frames' times, a fraction.
        filters: (name, options) of FFmpeg's filters, one after the other.
    """
    graph = Graph()
    # By default it starts a thread per core, which takes 5 times as long while the
    # cores are busy training.
    graph.threads = 1
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(time_base),
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    if int(frame.colorspace) == YCGCO:
        filters = [("colorspace", YCGCO_TO_BT709), *filters]
    nodes = [graph.add(*name_and_options) for name_and_options in filters]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    return graph


def _display_matrix(frame):
    """Returns the bytes of a frame's display matrix, or None if it has none."""
    kind = sidedata.Type.DISPLAYMATRIX.value
    if not _filtered(frame, [("sidedata", f"mode=select:type={kind}")]):
        return None
    # Without other side data: PyAV fails on kinds that it does not know, such as EXIF,
    # and frees the metadata of others twice, as of a PNG's colour profile.
    others = {*range(len(sidedata.Type) + 8)} - {kind}
    alone = _filtered(frame, [("sidedata", f"mode=delete:type={i}") for i in others])
    # Not `frame.side_data`: it would be in a reference cycle with the frame, which then
    # stays in memory, gigabytes of them, until Python looks for garbage.
    return sidedata.SideDataContainer(alone).get("DISPLAYMATRIX")


def _filtered(frame, filters):
    """Returns a frame after FFmpeg's filters, None if they drop it."""
    graph = filter_graph(frame, "1/25", filters)
    graph.vpush(frame)
    try:
        return graph.vpull()
    except av.error.BlockingIOError:
        return None
