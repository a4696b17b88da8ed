"""File formats of still pictures, told by their first bytes as browsers do.

FFmpeg weighs whatever a file holds, so that it may take a photo with another picture, a
video or text after its end for something else.
"""

import struct
import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = {
    b"\xff\xd8\xff": "jpeg_pipe",
    _PNG: "png_pipe",
    b"II*\0": "tiff_pipe",
    b"MM\0*": "tiff_pipe",
}

# Sizes in bytes of BMP's second header, by versions of Windows and OS/2.
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)

# Of TIFF, the tags that tell how pixels are stored and that FFmpeg knows.
_TIFF_TAGS = {
    *(254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293),
    *(317, 320, 322, 323, 324, 325, 530),
}
_TIFF_COMPRESSION, _JPEG_IN_TIFF = 259, (6, 7)

# Of PNG, the chunks that FFmpeg decompresses beside the pixels: profiles and texts.
_PNG_COMPRESSED = (b"iCCP", b"zTXt")

# Of JPEG, the segments of applications and comments; but Adobe's tells the colours.
_JPEG_METADATA, _JPEG_ADOBE, _JPEG_SCAN = {*range(0xE0, 0xF0), 0xFE}, 0xEE, 0xDA


def demuxer(encoded: bytes) -> str | None:
    """Returns FFmpeg's demuxer for a JPEG, PNG, TIFF, WebP or BMP file, else None.

    An animated PNG is among the others.
    """
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "webp_pipe"
    header_bytes = int.from_bytes(encoded[14:18], "little")
    if encoded[:2] == b"BM" and header_bytes in _BMP_HEADERS:
        return "bmp_pipe"
    for signature, name in _SIGNATURES.items():
        if encoded.startswith(signature):
            # A PNG with this chunk before its pixels is animated.
            animated = name == "png_pipe" and b"acTL" in encoded.partition(b"IDAT")[0]
            return None if animated else name
    return None


def unsupported(encoded: bytes) -> str:
    """Returns the name of a kind of picture that FFmpeg cannot decode, or ""."""
    match demuxer(encoded):
        case "webp_pipe" if encoded[12:16] == b"VP8X" and encoded[20:]:
            return "an animated WebP" if encoded[20] & 2 else ""
        case "tiff_pipe":
            tags = {number: value for number, value, _ in _tiff_tags(encoded)}
            # FFmpeg makes it black without a word.
            black = tags.get(_TIFF_COMPRESSION) in _JPEG_IN_TIFF
            return "a TIFF with JPEG inside" if black else ""
    return ""


def unpacked_metadata(encoded: bytes, limit: int) -> int:
    """Returns the number of bytes that the metadata of a PNG has when decompressed.

    Args:
        encoded: Encoded file; one of another format has none.
        limit: Bytes beyond which it is not decompressed.
    """
    size = 0
    for name, chunk in _png_chunks(encoded) if encoded.startswith(_PNG) else ():
        if name in _PNG_COMPRESSED and size <= limit:
            # After a keyword, a zero and the number of the method.
            packed = chunk[chunk.find(b"\0", 8) + 2 : -4]
            try:
                more = zlib.decompressobj().decompress(packed, limit + 1 - size)
            except zlib.error:  # where FFmpeg gives up, too
                continue
            size += len(more)
    return size


def without_metadata(encoded: bytes) -> bytes:
    """Returns a still picture's file without what is not needed to read its pixels.

    The orientation is lost. Files of formats other than JPEG, PNG and TIFF are returned
    as they are.
    """
    match demuxer(encoded):
        case "jpeg_pipe":
            return b"".join(_jpeg_pixels(encoded))
        case "png_pipe":
            return encoded[:8] + b"".join(_png_pixels(encoded))
        case "tiff_pipe":
            return _tiff_pixels(encoded)
    return encoded


def _jpeg_pixels(jpeg) -> Iterator[bytes]:
    yield jpeg[:2]
    place = 2
    while len(jpeg) >= place + 4 and jpeg[place] == 0xFF and jpeg[place + 1] != 0xFF:
        marker, length = jpeg[place + 1], int.from_bytes(jpeg[place + 2 : place + 4])
        if marker == _JPEG_SCAN:
            break
        if marker not in _JPEG_METADATA or marker == _JPEG_ADOBE:
            yield jpeg[place : place + 2 + length]
        place += 2 + length
    yield jpeg[place:]


def _png_pixels(png) -> Iterator[bytes]:
    for name, chunk in _png_chunks(png):
        if name[:1].isupper() or name == b"tRNS":  # critical, or transparency
            yield chunk


def _png_chunks(png) -> Iterator[tuple[bytes, bytes]]:
    """Yields the name of each chunk, and all of it."""
    place = len(_PNG)
    while place + 8 <= len(png):
        length, name = struct.unpack_from(">I4s", png, place)
        yield name, png[place : place + 12 + length]
        place += 12 + length


def _tiff_tags(tiff) -> Iterator[tuple[int, int, bytes]]:
    """Yields (number, first 16 bits of the value, entry) of the first picture."""
    order = "little" if tiff.startswith(b"II") else "big"
    place = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[place : place + 2], order)
    for start in range(place + 2, min(place + 2 + 12 * count, len(tiff)), 12):
        entry = tiff[start : start + 12]
        yield (
            int.from_bytes(entry[:2], order),
            int.from_bytes(entry[8:10], order),
            entry,
        )


def _tiff_pixels(tiff) -> bytes:
    order = "little" if tiff.startswith(b"II") else "big"
    known = [entry for number, _, entry in _tiff_tags(tiff) if number in _TIFF_TAGS]
    # Its directory is put at the end, where the header then points.
    return b"".join(
        [
            *(tiff[:4], len(tiff).to_bytes(4, order), tiff[8:]),
            *(len(known).to_bytes(2, order), *known, bytes(4)),
        ]
    )
