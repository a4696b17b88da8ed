"""The manifest of a data set: what is in every file, as a decoder found it, in CSV.

`manifest.csv` lies beside dataset_info.json and has a row for every example and for
every file that was left out. Columns are the fields of `Row`; `label` is called
`labels` where the data set is multi-label.
"""

import csv
import dataclasses
import fractions
import hashlib
import io
import os
from collections.abc import Iterable, Iterator

from etils import epath

from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.video import decode

NAME = "manifest.csv"
OK = "ok"  # the status of an example that was written
_AGAIN = "Delete it, or prepare the data set again."


class BadManifest(DatasetError):
    """The file is no manifest."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """An example, or a file that was left out; None is what is not known.

    Attributes:
        split: The split, for example "train".
        id: Its id, unlike every other of the data set.
        sha256: Of the encoded file, in hexadecimal.
        container: FFmpeg's name of it, such as "mov,mp4,m4a,3gp,3g2,mj2".
        codec: FFmpeg's name of it, such as "h264".
        width: Of the upright picture, in pixels.
        height: Of the upright picture, in pixels.
        frame_rate: What the container claims, frames a second on average; None for an
            image.
        decoded_frames: What a full decode gives, whatever the container claims.
        seconds: By presentation times, the last frame's included; None for an image.
        label: Its class; in a multi-label data set all its classes, () if unknown.
        status: "ok", or why it was left out.
    """

    split: str
    id: str
    sha256: str | None = None
    container: str | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    frame_rate: fractions.Fraction | None = None
    decoded_frames: int | None = None
    seconds: float | None = None
    label: str | tuple[str, ...] | None = None
    status: str = OK

    @classmethod
    def of(cls, split: str, name: str, label, encoded: bytes, kind: str) -> "Row":
        """The row of a file, decoded here; the status says if it does not decode."""
        digest = hashlib.sha256(encoded).hexdigest()
        row = cls(split=split, id=name, sha256=digest, label=label)
        try:
            return dataclasses.replace(row, **inspect(encoded, kind))
        except decode.UndecodableClip as error:
            return dataclasses.replace(row, status=str(error))

    @property
    def printable(self) -> str:
        """Id and status in valid Unicode, which file names need not be."""
        return os.fsencode(f"{self.id}: {self.status}").decode(errors="replace")


#: The columns that decoding gives.
DECODED = (
    "container",
    "codec",
    "width",
    "height",
    "frame_rate",
    "decoded_frames",
    "seconds",
)


def inspect(encoded: bytes, kind: str) -> dict:
    """Decodes every frame of a clip once, on one thread; of an image, its first.

    Args:
        encoded: A file that `input.decode` reads.
        kind: "video" or "image".

    Returns:
        The columns `DECODED`.

    Raises:
        UndecodableClip: It does not decode wholly: FFmpeg fails, has to make up for
            damaged data, or its frames differ in size.
    """
    with decode.opened(encoded) as video:
        if kind == "image":
            # A picture that breaks off would be filled up with grey.
            video.stream.codec_context.options = {"err_detect": "explode"}
        sizes, frames = set(), 0
        for frame in video.frames():
            swapped = decode.Orientation.of(frame).swapped
            sizes.add((frame.width, frame.height)[:: -1 if swapped else 1])
            if frame.is_corrupt:
                raise decode.UndecodableClip(f"It is damaged from frame {frames} on.")
            frames += 1
            if kind == "image":
                break
        if not frames:
            raise decode.UndecodableClip("None of its frames decodes.")
        if len(sizes) > 1:
            raise decode.UndecodableClip(f"Its size changes: {sorted(sizes)}.")
        ((width, height),) = sizes
        columns = {
            "container": video.format,
            "codec": video.stream.codec_context.name,
            "width": width,
            "height": height,
            "frame_rate": None,
            "decoded_frames": frames,
            "seconds": None,
        }
        if kind == "video":
            shown = video.packet_times()
            if shown is None:
                shown = video.frame_times()
            columns["frame_rate"] = video.stream.average_rate
            columns["seconds"] = round(video.seconds(shown), 6)
        return columns


def write(path, rows: Iterable[Row], multi_label: bool = False) -> None:
    """Writes rows in the order given, in UTF-8."""
    lines = [_line(_columns(multi_label))]
    for row in rows:
        cells = {name: getattr(row, name) for name in _columns()}
        if multi_label:  # CSV within CSV, as a label may hold the semicolon
            cells["label"] = _line(row.label, ";") if row.label else ""
        lines.append(_line(cells.values()))  # of None, csv makes ""
    text = "\n".join([*lines, ""])
    # File names, and with them ids, need not be valid UTF-8.
    epath.Path(path).write_bytes(text.encode(errors="surrogateescape"))


def read(path) -> Iterator[Row]:
    """Yields the rows of a manifest.

    Raises:
        BadManifest: The file is not what `write` writes; says where.
    """
    text = epath.Path(path).read_bytes().decode(errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(reader, [])
        multi_label = header == _columns(True)
        if not multi_label and header != _columns():
            raise BadManifest(
                f"{path} has the columns {', '.join(header)}; a manifest has"
                f" {', '.join(_columns())}. {_AGAIN}"
            )
        for cells in reader:
            yield _row(cells, multi_label)
    except (ArithmeticError, ValueError, csv.Error) as error:
        raise BadManifest(f"{path}:{reader.line_num}: {error}. {_AGAIN}") from None


def _columns(multi_label: bool = False) -> list[str]:
    names = [field.name for field in dataclasses.fields(Row)]
    return ["labels" if multi_label and n == "label" else n for n in names]


_PARSE = {
    "width": int,
    "height": int,
    "frame_rate": fractions.Fraction,
    "decoded_frames": int,
    "seconds": float,
}
_ALWAYS = ("split", "id", "status")  # text that may be empty, but is never unknown


def _row(cells: list[str], multi_label: bool) -> Row:
    columns = _columns()
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells in place of {len(columns)}")
    values = {
        name: _PARSE.get(name, str)(cell) if cell or name in _ALWAYS else None
        for name, cell in zip(columns, cells, strict=True)
    }
    if multi_label:
        values["label"] = _split(values["label"] or "")
    return Row(**values)


def _line(cells: Iterable, delimiter: str = ",") -> str:
    line = io.StringIO(newline="")
    # With the line end that it expects, the writer quotes cells with half of it.
    csv.writer(line, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n")


def _split(cell: str) -> tuple[str, ...]:
    lines = csv.reader(io.StringIO(cell, newline=""), delimiter=";")
    return tuple(next(lines, ()))
