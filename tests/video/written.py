"""Videos that tests write, and what they should decode to."""

import fractions
import io

import av
import numpy as np

from sparse_tube_vit.video.conversion import Crop
from sparse_tube_vit.video.decode import decode

SIZE = (48, 64)


VPX = {"crf": "4", "b": "2M", "auto-alt-ref": "1", "lag-in-frames": "16"}


FINE = {
    "libx264": {"crf": "1"},
    "libx265": {"crf": "4"},
    "libsvtav1": {"crf": "4"},
    "libvpx": VPX,
    "libvpx-vp9": VPX,
}


X265 = "log-level=none:pools=none:frame-threads=1:keyint=8"


def write_video(
    frames,
    rate=25,
    container="mp4",
    codec="libx264",
    pix_fmt="yuv420p",
    title="",
    b_frames=None,
    times=None,
    tags=None,
    **options,
):
    """An encoded file; near-lossless, so that frames can be told apart.

    `times` are in milliseconds, `tags` attributes of the stream.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        options = FINE.get(codec, {"qmin": "1", "qmax": "2"}) | options
        stream = out.add_stream(codec, rate=fractions.Fraction(rate), options=options)
        if not isinstance(frames[0], av.VideoFrame):
            frames = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in frames]
        stream.height, stream.width = frames[0].height, frames[0].width
        stream.pix_fmt = pix_fmt
        stream.gop_size, stream.codec_context.thread_count = 8, 1
        if b_frames is not None:
            stream.max_b_frames = b_frames
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        out.metadata["title"] = title
        for i, frame in enumerate(frames):
            if times is not None:
                frame.pts, frame.time_base = times[i], fractions.Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def numbered(n):
    """Grey frames (n, 48, 64, 3) whose brightness tells their number."""
    return (
        np.repeat(np.arange(n), 48 * 64 * 3).reshape(n, *SIZE, 3).astype(np.uint8) * 5
    )


def numbers(clip):
    return (clip.mean(axis=(1, 2, 3)) / 5).round().astype(int).tolist()


def moving(n):
    """Frames (n, 48, 64, 3) of a soft pattern that moves, each like no other."""
    y, x, t = np.mgrid[:48, :64, :n].astype(float)
    waves = [np.sin(x / 5 + 0.8 * t), np.sin(y / 4 - 0.5 * t), np.sin((x + y) / 9 + t)]
    return (128 + 90 * np.stack(waves, -1)).astype(np.uint8).transpose(2, 0, 1, 3)


def full_decode(data):
    """All frames, upright, as PyAV's own conversion gives them."""
    with av.open(io.BytesIO(data)) as container:
        return [
            np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            for frame in container.decode(video=0)
        ]


def frames(*args):
    return decode(*args)[0]


def whole(height, width):
    return Crop(0, 0, height, width, height, width)


def at(*times):
    return lambda duration: np.array(times)


def middles(n, rate=25):
    """The middle of every frame's time on show."""
    return (np.arange(n) + 0.5) / float(fractions.Fraction(rate))


def assert_are(clip, reference, first=0):
    """Frame by frame the reference's from `first` on, and no other."""
    for i, ours in enumerate(clip, first):
        errors = [np.abs(ours.astype(int) - other).mean() for other in reference]
        assert np.argmin(errors) == i and errors[i] < 4, (i, errors)


# Container, codec, and options of `write_video`. B frames are stored in another order
# than shown; an open group of pictures has some before the key frame that they need;
# intra refresh has key frames that are none; MPEG-PS and AVI lack presentation times.
KINDS = {
    "h264 mkv open": ("matroska", "libx264", {"x264-params": "open-gop=1:bframes=3"}),
    "h264 ts open": ("mpegts", "libx264", {"x264-params": "open-gop=1:bframes=3"}),
    "h264 mp4 refresh": ("mp4", "libx264", {"x264-params": "intra-refresh=1"}),
    "h264 ts refresh": ("mpegts", "libx264", {"x264-params": "intra-refresh=1"}),
    "h264 avi": ("avi", "libx264", {"b_frames": 3}),
    "h264 flv": ("flv", "libx264", {}),
    "h264 4:4:4": ("mov", "libx264", {"pix_fmt": "yuv444p"}),
    "h264 10 bit": ("matroska", "libx264", {"pix_fmt": "yuv420p10le"}),
    "h264 interlaced": ("mpegts", "libx264", {"x264-params": "interlaced=1"}),
    "h264 no container": ("h264", "libx264", {}),
    "hevc mp4": ("mp4", "libx265", {"x265-params": X265}),
    "hevc ts open": (
        "mpegts",
        "libx265",
        {"x265-params": f"{X265}:open-gop=1:bframes=4"},
    ),
    "hevc 10 bit": (
        "matroska",
        "libx265",
        {"x265-params": X265, "pix_fmt": "yuv420p10le"},
    ),
    "av1 mp4": ("mp4", "libsvtav1", {"preset": "12"}),
    "av1 webm 10 bit": (
        "webm",
        "libsvtav1",
        {"preset": "12", "pix_fmt": "yuv420p10le"},
    ),
    "vp8 webm": ("webm", "libvpx", {}),
    "vp9 webm": ("webm", "libvpx-vp9", {}),
    "mpeg1 mpg": ("mpeg", "mpeg1video", {"b_frames": 2}),
    "mpeg2 mpg": ("mpeg", "mpeg2video", {"b_frames": 2}),
    "mpeg2 mpg interlaced": ("mpeg", "mpeg2video", {"flags": "+ildct+ilme"}),
    "mpeg2 ts": ("mpegts", "mpeg2video", {"b_frames": 2, "pix_fmt": "yuv422p"}),
    "mpeg2 mkv": ("matroska", "mpeg2video", {"b_frames": 2}),
    "mpeg2 avi": ("avi", "mpeg2video", {"b_frames": 2}),
    "mpeg4 mp4": ("mp4", "mpeg4", {"b_frames": 2}),
    "mpeg4 avi": ("avi", "mpeg4", {}),
    "mpeg4 avi b": ("avi", "mpeg4", {"b_frames": 2}),
    "wmv": ("asf", "wmv2", {}),
    "mjpeg mov": ("mov", "mjpeg", {"pix_fmt": "yuvj422p"}),
    "gif": ("gif", "gif", {"pix_fmt": "rgb8"}),
    "apng": ("apng", "apng", {"pix_fmt": "rgb24"}),
}


def remux(video, container, change, packets=slice(None)):
    """The packets of a video, changed, in a new file."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(video)) as source,
        av.open(file, "w", format=container) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        stored = [packet for packet in source.demux(video=0) if packet.size]
        for i, packet in enumerate(stored[packets]):
            change(i, packet)
            packet.stream = stream
            out.mux(packet)
    return file.getvalue()
