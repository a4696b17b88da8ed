"""Boxes of MP4 files, damaged or uncommon, for tests."""

import fractions
import io
import struct
import zlib

import av
import numpy as np

from tests.video.written import moving, write_video

MANY = 50_000_000
CONTAINERS = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"moof", b"traf")


def box(kind, *contents):
    payload = b"".join(contents)
    return struct.pack(">I4s", 8 + len(payload), kind) + payload


def numbers(*values):
    return struct.pack(f">{len(values)}I", *values)


def edited(data, tables):
    """The boxes of an MP4 file, with other payloads for some kinds."""
    out, start = b"", 0
    while start < len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        payload = data[start + 8 : start + size]
        if kind in tables:
            payload = tables[kind]
        elif kind in CONTAINERS:
            payload = edited(payload, tables)
        out += box(kind, payload)
        start += size
    return out


def claiming(samples=MANY, size=1):
    """A video that claims that many samples of the same size, one after the other."""
    return edited(
        write_video(moving(2)),
        {
            b"stsz": numbers(0, size, samples),
            b"stts": numbers(0, 1, samples, 1),
            b"stsc": numbers(0, 1, 1, samples, 1),
        },
    )


def fragmented(video):
    """The same video in fragments."""
    file = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with (
        av.open(io.BytesIO(video)) as source,
        av.open(file, "w", format="mp4", options=options) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return file.getvalue()


def with_sound(seconds, codec="pcm_s16le"):
    """A QuickTime file with uncompressed sound, whose samples are two bytes each."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as out:
        video = out.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        sound = out.add_stream(codec, rate=48_000, layout="mono")
        for picture in moving(3):
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        wave = np.zeros((1, 48_000 * seconds), np.int16)
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.rate, frame.pts = 48_000, 0
        frame.time_base = fractions.Fraction(1, 48_000)
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
        out.mux(video.encode(None))
    return file.getvalue()


def headed(change):
    """The same claim, its header (type and contents of a box) changed."""
    data = claiming()
    start = data.index(b"moov") - 4
    (size,) = struct.unpack_from(">I", data, start)
    moov = data[start : start + size]
    return data[:start] + change(moov) + data[start + size :]


def compressed(moov):
    packed = numbers(len(moov)) + zlib.compress(moov)
    return box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", packed)))


def long_size(moov):
    return numbers(1) + b"moov" + struct.pack(">Q", len(moov) + 8) + moov[8:]


def in_description(moov):
    """Among the boxes of the codec, in place of the table's usual place."""
    start = moov.index(b"stsd") + 4
    (size,) = struct.unpack_from(">I", moov, start - 8)
    description = moov[start : start + size - 8]
    (entry_size,) = struct.unpack_from(">I", description, 8)
    table = box(b"stsz", numbers(0, 1, MANY))
    entry = numbers(entry_size + len(table)) + description[12:] + table
    moov = edited(moov, {b"stsd": description[:8] + entry})
    return moov[: moov.rindex(b"stsz")] + b"skip" + moov[moov.rindex(b"stsz") + 4 :]


def in_fragment(*flags_and_count):
    video = fragmented(write_video(moving(2)))
    return edited(video, {b"trun": numbers(*flags_and_count)})


# FFmpeg takes 1.7 to 3.4 GiB to open each of these.
WAYS = {
    "plainly": claiming,
    "in free space": lambda: headed(lambda moov: box(b"free", moov[8:])),
    "compressed": lambda: headed(compressed),
    "64 bits of size": lambda: headed(long_size),
    "in the description": lambda: headed(in_description),
    "in a fragment": lambda: in_fragment(1, MANY, 0),
    "at the end of a fragment": lambda: in_fragment(0, MANY),
}


def with_edits(edits):
    """A video of 240 frames, that is shown so many times."""
    video = write_video(np.repeat(moving(4), 60, axis=0))
    (duration,) = struct.unpack_from(">I", video, video.index(b"elst") + 12)
    edit = numbers(duration, 0, 0x10000)
    return edited(video, {b"elst": numbers(0, edits) + edits * edit})
