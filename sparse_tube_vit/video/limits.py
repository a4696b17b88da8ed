"""Limits of what decoding a file may take, and the errors of files that exceed them.

A few bytes may claim a picture of gigabytes, or millions of frames: FFmpeg allocates
what a file claims, before any of it is decoded.
"""

import dataclasses
import time

from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.video import mp4, pictures

# Limit of what decompressed metadata of a picture takes; profiles have up to a few MB.
METADATA_BYTES = 2**25


class UndecodableClip(TubeViTError, ValueError):
    """The file holds no picture that can be decoded."""


class DecodeTimeout(UndecodableClip):
    """Decoding took longer than allowed."""


class ClipTooLarge(UndecodableClip):
    """The file has more pixels, packets or bytes than allowed."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of what decoding a file may take; the defaults are for whole videos.

    CPU time of the thread counts, so that no clip is lost on a machine that is busy or
    was suspended. It is checked between packets: one call of FFmpeg, such as decoding a
    packet, is never interrupted. Reading alone can wait without using CPU time, so only
    reading is limited by the clock as well.

    Attributes:
        cpu_seconds: CPU time.
        read_seconds: Seconds by the clock to open the file, or to read a packet.
        frame_pixels: Pixels of a frame. 8K has 33 million.
        packets: Encoded frames. An hour at 60 frames a second has 216,000.
        file_bytes: Size of the encoded file.
    """

    cpu_seconds: float = 4 * 3600.0
    read_seconds: float = 600.0
    frame_pixels: int = 2**27
    packets: int = 2**20
    file_bytes: int = 2**34

    @classmethod
    def of(cls, loader) -> "Limits":
        """Returns the limits of a config's section `loader`."""
        return cls(
            cpu_seconds=loader.decode_timeout_seconds,
            read_seconds=loader.read_timeout_seconds,
            frame_pixels=loader.max_frame_pixels,
            packets=loader.max_packets,
            file_bytes=loader.max_file_bytes,
        )

    def check_file(self, data: bytes) -> None:
        """Checks an encoded file before FFmpeg opens it.

        Raises:
            ClipTooLarge: It is too large, claims too many packets, or has too much
                metadata.
        """
        if len(data) > self.file_bytes:
            raise ClipTooLarge(
                f"It has {len(data):,} bytes, more than the {self.file_bytes:,} of"
                " config.loader.max_file_bytes."
            )
        if mp4.claimed_samples(data) > self.packets:
            raise self.too_many_packets()
        if pictures.unpacked_metadata(data, METADATA_BYTES) > METADATA_BYTES:
            raise ClipTooLarge(
                "Its colour profile and texts have more than"
                f" {METADATA_BYTES:,} bytes when decompressed."
            )

    def too_many_packets(self) -> ClipTooLarge:
        """Returns the error of a file with too many packets."""
        return ClipTooLarge(
            f"It has, or claims to have, more than the {self.packets:,} packets of"
            " config.loader.max_packets."
        )

    def check_frame(self, width: int, height: int) -> None:
        """Checks the size of frames.

        Raises:
            ClipTooLarge: They have too many pixels.
        """
        if width * height > self.frame_pixels:
            raise ClipTooLarge(
                f"It has {height} x {width} pixels, more than the"
                f" {self.frame_pixels:,} of config.loader.max_frame_pixels."
            )

    @property
    def codec_options(self) -> dict[str, str]:
        """Options of FFmpeg's decoders that refuse larger frames."""
        return {"max_pixels": str(self.frame_pixels)}

    @property
    def of_unknown_size(self) -> str:
        """What may be wrong where FFmpeg refuses frames and does not say why."""
        return (
            f"It is damaged, or has more than {self.frame_pixels:,} pixels a frame"
            " (config.loader.max_frame_pixels)."
        )

    def check_packets(self, count: int, size: int, data: bytes) -> None:
        """Checks packets read so far, of `size` bytes in all, from a file's `data`.

        Raises:
            ClipTooLarge: There are too many, or they overlap in the file.
        """
        if count > self.packets:
            raise self.too_many_packets()
        # Matroska may compress a little: packets of an honest file hardly exceed it.
        if size > 2 * len(data) + 2**24:
            raise ClipTooLarge(
                f"The file has {len(data):,} bytes, its packets more than {size:,}."
            )


LIMITS = Limits()


class CpuLimit:
    """CPU time since decoding of a file began."""

    def __init__(self, limits: Limits):
        self.limit, self.started = limits.cpu_seconds, time.thread_time()

    def check(self) -> None:
        """Raises `DecodeTimeout` if the time is over."""
        if time.thread_time() - self.started > self.limit:
            raise DecodeTimeout(
                f"It takes more than {self.limit:g} s to decode "
                "(config.loader.decode_timeout_seconds)."
            )
