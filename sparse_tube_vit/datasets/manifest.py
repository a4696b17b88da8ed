"""The manifest of a data set: a CSV file with the decoded properties of every file.

`manifest.csv` is beside dataset_info.json and has a row for every example and for every
file that was left out. Columns are the fields of `Row`; `label` is called `labels` in a
multi-label data set, and `span` is absent where no file is longer than its clip.
"""

import contextlib
import csv
import dataclasses
import fractions
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator

from etils import epath

from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.video.inspection import inspect
from sparse_tube_vit.video.limits import UndecodableClip

NAME = "manifest.csv"
OK = "ok"  # status of an example that is in the records
_AGAIN = "Delete it, or prepare the data set again."


class BadManifest(DatasetError):
    """The file is not a manifest."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """An example, or a file that was left out; unknown values are None.

    Attributes:
        split: Split, for example "train".
        id: Identifier, unique within the split.
        sha256: SHA-256 of the encoded file in hexadecimal.
        container: FFmpeg's name of the container, such as "mov,mp4,m4a,3gp,3g2,mj2".
        codec: FFmpeg's name of the codec, such as "h264".
        width: Width of the upright picture in pixels.
        height: Height of the upright picture in pixels.
        frame_rate: The container's average frames a second; None for an image.
        decoded_frames: Number of frames of a full decode.
        seconds: Duration by presentation times, with that of the last frame; None for
            an image.
        label: Class name; in a multi-label data set all class names, () if unknown.
        status: "ok", or the reason why the file was left out.
        span: Start and end in seconds of the part of the file that is the clip, if it
            is longer. A transcoded file is that part alone, as are its other columns.
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
    span: tuple[float, float] | None = None

    @classmethod
    def of(cls, split: str, name: str, label, encoded: bytes, kind: str) -> "Row":
        """Decodes a file and returns its row; errors of decoding are its status."""
        digest = hashlib.sha256(encoded).hexdigest()
        row = cls(split=split, id=name, sha256=digest, label=label)
        try:
            return dataclasses.replace(row, **inspect(encoded, kind))
        except UndecodableClip as error:
            return dataclasses.replace(row, status=str(error))

    @property
    def printable(self) -> str:
        """Id and status in valid Unicode, which file names need not be."""
        return os.fsencode(f"{self.id}: {self.status}").decode(errors="replace")


def write(path, rows: Iterable[Row], multi_label: bool = False) -> None:
    """Writes a manifest with these rows in this order, in UTF-8."""
    rows = list(rows)
    spans = any(row.span for row in rows)
    lines = [_line(_columns(multi_label, spans))]
    for row in rows:
        cells = {name: getattr(row, name) for name in _columns(spans=spans)}
        if row.span:
            cells["span"] = "{:.10g}-{:.10g}".format(*row.span)
        if multi_label:  # CSV within CSV, as a label may contain the semicolon
            cells["label"] = _line(row.label, ";") if row.label else ""
        lines.append(_line(cells.values()))  # csv writes None as ""
    text = "\n".join([*lines, ""])
    # Ids may be file names, which need not be valid UTF-8.
    epath.Path(path).write_bytes(text.encode(errors="surrogateescape"))


def read(path) -> Iterator[Row]:
    """Yields the rows of a manifest.

    Raises:
        BadManifest: The file is not one that `write` has written; names the line.
    """
    with _reading(path) as (header, lines):
        multi_label, spans = "labels" in header, "span" in header
        for cells in lines:
            yield _row(cells, multi_label, spans)


def digest(path) -> str:
    """Returns the SHA-256 of the examples: split, id, file, label and span of each.

    Files that were left out, and what decoding found, may differ between copies of the
    same data set.

    Raises:
        BadManifest: As `read`.
    """
    found = hashlib.sha256()
    with _reading(path) as (header, lines):
        of_examples = ("split", "id", "sha256", "label", "labels", "span")
        columns = [i for i, name in enumerate(header) if name in of_examples]
        status = header.index("status")
        for cells in lines:
            if cells[status] == OK:
                row = json.dumps([cells[i] for i in columns])
                found.update(row.encode())
    return found.hexdigest()


@contextlib.contextmanager
def _reading(path):
    """Context manager: the header of a manifest, and an iterator over its lines."""
    text = epath.Path(path).read_bytes().decode(errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(reader, [])
        if header != _columns("labels" in header, "span" in header):
            raise BadManifest(
                f"{path} has the columns {', '.join(header)}; a manifest has"
                f" {', '.join(_columns())}. {_AGAIN}"
            )
        yield header, _lines_of(reader, len(header))
    except (ArithmeticError, ValueError, csv.Error) as error:
        raise BadManifest(f"{path}:{reader.line_num}: {error}. {_AGAIN}") from None


def _lines_of(reader, columns):
    for cells in reader:
        if len(cells) != columns:
            raise ValueError(f"{len(cells)} cells in place of {columns}")
        yield cells


def _columns(multi_label: bool = False, spans: bool = False) -> list[str]:
    names = [field.name for field in dataclasses.fields(Row)]
    if not spans:
        names.remove("span")
    return ["labels" if multi_label and n == "label" else n for n in names]


def _parse_span(cell: str) -> tuple[float, float]:
    start, _, end = cell.partition("-")
    return float(start), float(end)


_PARSE = {
    "span": _parse_span,
    "width": int,
    "height": int,
    "frame_rate": fractions.Fraction,
    "decoded_frames": int,
    "seconds": float,
}
_ALWAYS = ("split", "id", "status")  # may be empty, but never unknown


def _row(cells: list[str], multi_label: bool, spans: bool) -> Row:
    values = {
        name: _PARSE.get(name, str)(cell) if cell or name in _ALWAYS else None
        for name, cell in zip(_columns(spans=spans), cells, strict=True)
    }
    if multi_label:
        values["label"] = _split(values["label"] or "")
    return Row(**values)


def _line(cells: Iterable, delimiter: str = ",") -> str:
    line = io.StringIO(newline="")
    # With this line end, the writer also quotes cells that contain half of it.
    csv.writer(line, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n")


def _split(cell: str) -> tuple[str, ...]:
    lines = csv.reader(io.StringIO(cell, newline=""), delimiter=";")
    return tuple(next(lines, ()))
