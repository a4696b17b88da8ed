"""Numbers of samples that MP4 and QuickTime files claim, read before FFmpeg does.

Where all samples of a track or fragment are alike, a few bytes claim any number of
them, and FFmpeg allocates some 70 bytes for each as it opens the file.
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterator

# Boxes of boxes. FFmpeg finds a header in free space too.
CONTAINERS = {
    *(b"moov", b"moof", b"mvex", b"trak", b"traf", b"mdia", b"minf", b"stbl", b"cmov"),
    *(b"free", b"hoov", b"dinf", b"edts", b"udta", b"tref", b"wave", b"meta", b"iprp"),
    *(b"ipco", b"sinf", b"schi"),
}
MAX_DEPTH = 12  # FFmpeg reads boxes of 10 levels
MAX_HEADER_BYTES = 2**24  # of a compressed header, uncompressed


def claimed_samples(data: bytes) -> int:
    """Returns the number of samples that a file claims without listing each.

    Edits, for each of which FFmpeg copies the list of samples that it shows, count with
    an eighth of their track. Sound that is in the file does not count: uncompressed,
    its samples are many, and FFmpeg reads them in chunks.

    Args:
        data: Encoded file; one of another container claims none.
    """
    return _claimed(data, len(data))


@dataclasses.dataclass
class _Track:
    """Samples in a track, those of them that no table lists, and edits."""

    samples: int = 0
    unlisted: int = 0
    edits: int = 0
    sound: bool = False

    @property
    def claimed(self):
        return self.unlisted + max(self.edits - 1, 0) * self.samples // 8


def _claimed(header, file_bytes):
    others, tracks = 0, [_Track()]
    for kind, start, end in _boxes(header, 0, len(header), 0):
        payload = header[start : min(end, start + 12)]
        first, second, third = struct.unpack(">3I", payload.ljust(12, b"\0"))
        match kind:
            case b"trak":
                tracks.append(_Track())
            case b"hdlr" if payload[8:] == b"soun":
                tracks[-1].sound = True
            case b"elst":
                tracks[-1].edits += min(second, (end - start) // 12)
            case b"stsz" if second:  # bytes of every sample, and their number
                if tracks[-1].sound and second * third <= file_bytes:
                    tracks[-1].samples += third // 1024
                else:
                    tracks[-1].samples += third
                    tracks[-1].unlisted += third
            case b"stsz" | b"stz2":
                tracks[-1].samples += min(third, 2 * (end - start))
            case b"trun" if not first & 0xF00:  # flags: no field of any sample
                others += second
            case b"cmvd" if first > MAX_HEADER_BYTES:
                others += first // 4  # that a table of so many bytes lists
            case b"cmvd":
                unpacked = _unpacked(header[start + 4 : end])
                others += _claimed(unpacked, file_bytes)
    return others + sum(track.claimed for track in tracks)


def _boxes(data, start, end, depth) -> Iterator[tuple[bytes, int, int]]:
    """Yields (type, start, end) of the contents of all boxes, outer ones first.

    Sizes are taken as FFmpeg takes them: what reaches past the enclosing box is cut.
    """
    while start + 8 <= end and depth < MAX_DEPTH:
        size, kind = struct.unpack_from(">I4s", data, start)
        inside = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, inside)
            inside += 8
        after = min(start + size, end) if size else end
        if after < inside:
            return
        yield kind, inside, after
        if kind in CONTAINERS:
            if kind == b"meta":  # may have a version before its first box
                inside = max(inside, data.find(b"hdlr", inside, after) - 4)
            yield from _boxes(data, inside, after, depth + 1)
        elif kind == b"stsd" and (table := data.find(b"stsz", inside, after)) >= 0:
            # Boxes follow the fields of a codec, here at any place.
            yield from _boxes(data, table - 4, after, depth + 1)
        start = after


def _unpacked(header) -> bytes:
    """Returns a header of up to `MAX_HEADER_BYTES`, nothing if it is damaged."""
    try:
        return zlib.decompressobj().decompress(header, MAX_HEADER_BYTES)
    except zlib.error:
        return b""
