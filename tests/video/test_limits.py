"""Files that ask for more than they get: named errors, at once, in little memory."""

import dataclasses
import gc
import io
import itertools
import re
import socket
import struct
import time
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from sparse_tube_vit.config import default_config
from sparse_tube_vit.video import inspection, opening
from sparse_tube_vit.video.conversion import Crop
from sparse_tube_vit.video.decode import decode
from sparse_tube_vit.video.limits import (
    LIMITS,
    ClipTooLarge,
    DecodeTimeout,
    Limits,
    UndecodableClip,
)
from sparse_tube_vit.video.opening import kind_of, opened
from sparse_tube_vit.video.transcode import Transcode
from tests.video import memory
from tests.video.boxes import WAYS, box, edited, with_edits
from tests.video.boxes import numbers as words
from tests.video.written import KINDS, at, moving, whole, write_video

H, W = 48, 64


def picture(name, **options):
    file = io.BytesIO()
    Image.fromarray(moving(1)[0]).save(file, name, **options)
    return file.getvalue()


def webp(side):
    """A lossless WebP file of 34 bytes."""
    payload = b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14) + bytes(9)
    chunks = b"WEBPVP8L" + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def chunk(name, body):
    crc = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + crc


def png(side):
    """A PNG file of 16 bits, 4 channels, and pixels for its first line."""
    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    line = zlib.compress(bytes(1 + 8 * side))
    chunks = (b"IHDR", header), (b"IDAT", line), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def resized(name, before, after):
    """A picture whose header has another size."""
    data = picture(name)
    assert data.count(before) == 1, name
    return data.replace(before, after)


def tag(number, value):
    return struct.pack("<HHII", number, 4, 1, value)


def large():
    """(name, file) of few bytes, for which FFmpeg allocates a gigabyte or more."""
    side, sides = 16_000, (16_000, 16_000)
    yield "webp", webp(side)
    yield "png", png(side)
    for name, start, form, size in (
        ("JPEG", b"", ">HH", (H, W)),
        ("GIF", b"a", "<HH", (W, H)),
        ("BMP", b"", "<II", (W, H)),
    ):
        before, after = (start + struct.pack(form, *s) for s in (size, sides))
        yield name, resized(name, before, after)
    tags = (tag(256, w) + tag(257, h) for w, h in ((W, H), sides))
    yield "TIFF", resized("TIFF", *tags)
    yield from ((way, make()) for way, make in WAYS.items())
    yield "edits", with_edits(50_000)


def inspect_image(data):
    inspection.inspect(data, "image")


def inspect_video(data):
    inspection.inspect(data, "video")


def decode_first(data):
    decode(data, at(0.0), whole)


def read_large():
    """Returns (name, function, error, peak memory) of all ways to read large files."""
    for data in (write_video(moving(4)), picture("PNG")):  # libraries are loaded
        for read in (decode_first, inspect_video, inspect_image, Transcode()):
            read(data)
    done = []
    for name, data in large():
        for read in (decode_first, inspect_video, inspect_image, Transcode()):
            error = None

            def attempt(read=read, data=data):
                nonlocal error
                try:
                    read(data)
                except UndecodableClip as e:
                    error = str(e)

            peak = memory.peak(attempt)
            done.append((name, len(data), error, peak))
    return done


def test_files_that_claim_to_be_large_are_refused_in_little_memory():
    for name, size, error, peak in memory.in_process(read_large):
        assert error and re.search(r"config\.loader\.max_", error), (name, error)
        assert peak < 2**24, (name, peak)
        assert size < 40_000 or name == "edits"


@pytest.mark.smoke
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_a_frame_are_limited(kind):
    container, codec, options = KINDS[kind]
    video = write_video(moving(4), 25, container, codec, **options)
    for second in (0.0, 0.1):
        limits = Limits(frame_pixels=2**17)  # padding counts too
        assert decode(video, at(second), whole, limits)[0].shape == (1, H, W, 3)
        limits = Limits(frame_pixels=H * W - 1)
        with pytest.raises(UndecodableClip, match="config.loader.max_frame_pixels"):
            decode(video, at(second), whole, limits)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_pixels_of_a_picture_are_limited(name):
    data, limit = picture(name), "3,071 pixels a frame .config.loader.max_frame_pixels"
    assert decode(data, at(0.0), whole, Limits(frame_pixels=H * W))[0].any()
    with pytest.raises(UndecodableClip, match=limit):
        decode(data, at(0.0), whole, Limits(frame_pixels=H * W - 1))


@pytest.mark.parametrize("kind", ["h264 ts open", "h264 no container"])
def test_frames_that_grow_are_limited(kind):
    container, codec, _ = KINDS[kind]
    small, grown = (
        write_video(pictures, 25, container, codec)
        for pictures in (moving(8), moving(8).repeat(4, axis=1))
    )
    with pytest.raises(UndecodableClip):
        decode(small + grown, at(0.0, 0.5), whole, Limits(frame_pixels=2 * H * W))


@pytest.mark.parametrize("kind", ["h264 mkv open", "vp9 webm", "mpeg2 mpg"])
def test_packets_are_limited(kind):
    container, codec, options = KINDS[kind]
    video = write_video(moving(20), 25, container, codec, **options)
    with opened(video) as whole_video:
        n = len(whole_video.packets)
    assert decode(video, at(0.7), whole, Limits(packets=n))[0].any()
    with pytest.raises(ClipTooLarge, match=f"{n - 1} packets of config.loader.max_pac"):
        decode(video, at(0.7), whole, Limits(packets=n - 1))


def test_packets_that_overlap_in_the_file_are_refused():
    """A thousand frames that are all the same 32 KB."""
    video = write_video(moving(2)) + box(b"free", bytes(2**16))
    tables = {
        b"stsz": words(0, 2**15, 1000),
        b"stts": words(0, 1, 1000, 512),
        b"stsc": words(0, 1, 1, 1, 1),
        b"stco": words(0, 1000, *[48] * 1000),
        b"elst": words(0, 0),
    }
    with pytest.raises(ClipTooLarge, match="its packets more than 1[67],"):
        decode(edited(video, tables), at(0.0), whole)


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt"])
@pytest.mark.parametrize("chunks", [1, 40])
def test_decompressed_metadata_of_a_picture_is_limited(name, chunks):
    """Also of an animated one, and of many texts that are each below the limit."""
    for first in (b"", chunk(b"acTL", words(1, 0))):
        for size, refused in ((2**25 // chunks - 50, False), (2**26 // chunks, True)):
            text = chunk(name, b"x\0\0" + zlib.compress(bytes(size)))
            data = picture("PNG")
            data = data[:33] + first + text * chunks + data[33:]
            if refused:
                with pytest.raises(ClipTooLarge, match="profile and texts have more"):
                    kind_of(data)
            else:
                Limits().check_file(data)
    damaged = chunk(name, b"x\0\0" + zlib.compress(bytes(2**26))[:-9] + bytes(9))
    with pytest.raises(ClipTooLarge):
        kind_of(data[:33] + damaged + data[33:])
    kind_of(picture("PNG")[:33] + chunk(name, b"") + picture("PNG")[33:])


def test_bytes_of_a_file_are_limited():
    video = write_video(moving(4))
    assert decode(video, at(0.0), whole, Limits(file_bytes=len(video)))[0].any()
    with pytest.raises(ClipTooLarge, match="5,[0-9]+ of config.loader.max_file_bytes"):
        decode(video, at(0.0), whole, Limits(file_bytes=len(video) - 1))


def test_time_counts_while_packets_are_read(monkeypatch):
    """By a clock that goes on by a second whenever it is looked at."""
    video = write_video(moving(20))
    clock = itertools.count().__next__
    monkeypatch.setattr("sparse_tube_vit.video.limits.time.thread_time", clock)
    with (
        pytest.raises(DecodeTimeout, match="more than 10 s to decode"),
        opened(video, Limits(cpu_seconds=10)),
    ):
        pytest.fail("All packets were read.")


def test_real_data_are_within_the_limits():
    assert LIMITS.frame_pixels > max(11_648 * 8_736, 8_192 * 4_320)
    assert LIMITS.packets > 3600 * 60
    assert LIMITS.file_bytes > 3600 * 20e6 / 8  # an hour of 4K
    assert LIMITS.cpu_seconds > 3600


@pytest.mark.slow
def test_a_picture_of_100_megapixels():
    file = io.BytesIO()
    Image.new("RGB", (11_648, 8_736), (0, 200, 0)).save(file, "JPEG")
    clip, _ = decode(file.getvalue(), at(0.0), lambda h, w: Crop(0, 0, h, w, 8, 8))
    assert np.abs(clip[0].astype(int) - (0, 200, 0)).max() < 3


def test_defaults_of_the_config_are_those_without_one():
    limits = Limits.of(default_config().loader)
    assert dataclasses.replace(limits, cpu_seconds=LIMITS.cpu_seconds) == LIMITS
    assert limits.cpu_seconds == 60


def session(port):
    """A text that makes FFmpeg listen on a port for video."""
    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=x", "c=IN IP4 127.0.0.1", "t=0 0"]
    lines += [f"m=video {port} RTP/AVP 96", "a=rtpmap:96 H264/90000"]
    return "\n".join([*lines, ""]).encode()


def free_port():
    """An even one, as RTP has them: the next is for its control."""
    while True:
        with socket.socket(type=socket.SOCK_DGRAM) as one:
            one.bind(("", 0))
            if one.getsockname()[1] % 2 == 0:
                return one.getsockname()[1]


def playlists(name):
    """Texts that name a file beside them."""
    yield "ffconcat", f"ffconcat version 1.0\nfile {name}\n"
    yield "m3u8", f"#EXTM3U\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n"
    yield "m3u8 by URL", f"#EXTM3U\n#EXTINF:1,\nfile:{name}\n#EXT-X-ENDLIST\n"


def test_no_other_file_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.ts").write_bytes(write_video(moving(4), 25, "mpegts"))
    for kind, text in playlists("other.ts"):
        for data in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
            with pytest.raises(UndecodableClip):
                decode(data, at(0.0), whole)
            with pytest.raises(UndecodableClip):
                Transcode()(data)
        if kind == "ffconcat":  # FFmpeg would
            with av.open(io.BytesIO(text.encode())) as container:
                assert next(container.decode(video=0)).width == W
    # Nor by a demuxer that may be used, or a protocol.
    monkeypatch.setattr(opening, "DEMUXERS", ("concat", "hls", "mpegts"))
    for _, text in playlists("other.ts"):
        with pytest.raises(UndecodableClip):
            decode(text.encode(), at(0.0), whole)


def test_no_port_is_opened():
    with pytest.raises(UndecodableClip, match="of a format that is not read"):
        decode(session(50_004), at(0.0), whole)


def test_what_waits_is_limited_by_the_clock(monkeypatch):
    monkeypatch.setattr(opening, "DEMUXERS", ("sdp", "rtp"))
    monkeypatch.setattr(opening, "PROTOCOLS", ("pipe", "rtp", "udp"))
    started, used = time.monotonic(), time.thread_time()
    with pytest.raises(DecodeTimeout, match="config.loader.read_timeout_seconds"):
        decode(session(free_port()), at(0.0), whole, Limits(read_seconds=0.5))
    assert 0.4 < time.monotonic() - started < 5 and time.thread_time() - used < 0.5


ERRORS = [IndexError, ValueError, UnicodeDecodeError("utf-8", b"", 0, 1, "x")]
ERRORS += [AssertionError, RuntimeError("x"), TypeError, OverflowError, MemoryError]


class Failing:
    """Fails in one of its methods, as PyAV's objects do."""

    def __init__(self, real, method, error):
        self.real, self.method, self.error = real, method, error

    def __getattr__(self, name):
        if name == self.method:
            raise self.error
        return getattr(self.real, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.real.close()


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: getattr(e, "__name__", None))
def test_whatever_pyav_raises_is_an_undecodable_clip(error, monkeypatch):
    video, really_open = write_video(moving(4)), av.open

    def fails(*args, **options):
        raise error

    def fails_later(*args, **options):
        return Failing(really_open(*args, **options), "demux", error)

    for open_file in (fails, fails_later):
        monkeypatch.setattr(opening.av, "open", open_file)
        for read in (decode_first, inspect_video, Transcode()):
            with pytest.raises(UndecodableClip, match="PyAV cannot read it: .*Err"):
                read(video)


def test_a_stream_that_appears_late(real_data):
    path = real_data / "odd_inputs" / "videos" / "stream_appears_late.ts"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with pytest.raises(UndecodableClip, match="PyAV cannot read it: IndexError"):
        decode_first(path.read_bytes())


def test_errors_of_the_caller_are_not_those_of_the_clip():
    def times(duration):
        raise IndexError("a mistake")

    with pytest.raises(IndexError, match="a mistake"):
        decode(write_video(moving(4)), times, whole)


def frames_in_memory():
    return sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())


@pytest.mark.parametrize(
    "read",
    [decode_first, inspect_video, Transcode()],
    ids=["decode", "inspect", "transcode"],
)
def test_frames_do_not_stay_in_memory(read):
    """Without a search for reference cycles, which would free them at some time."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [write_video(moving(20)), picture("JPEG", exif=exif), picture("PNG")]
    gc.collect()
    gc.disable()
    try:
        before = frames_in_memory()
        for data in files:
            read(data)
        assert frames_in_memory() == before
    finally:
        gc.enable()
