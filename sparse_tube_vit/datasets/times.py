"""Times of clips and of labels within videos, in seconds after the first frame."""

from sparse_tube_vit.video.decode import UndecodableClip

#: Feature of records with the start and end of the part of the file that is the clip;
#: empty where it is all of it.
SPAN = "clip_seconds"
#: Feature of records with a row (class, start, end) for each action.
ACTIONS = "action_seconds"


def part_of(seconds: float, start: float, end: float) -> tuple[float, float] | None:
    """Returns which part of a file is the clip from `start` to `end` of its video.

    A file of about the clip's length, or that ends before the clip does and is at most
    twice as long, as where it was cut at key frames, is the clip itself.

    Args:
        seconds: Duration of the file.
        start: Start of the clip in the video, in seconds.
        end: End of the clip in the video, in seconds.

    Returns:
        Start and end in seconds; None if the file is the clip.

    Raises:
        UndecodableClip: The file is neither the clip nor the video.
    """
    length = end - start
    if seconds <= length + 1:
        return None
    if seconds >= end - 1:
        return start, round(min(end, seconds), 3)
    if seconds <= 2 * length:
        return None
    if seconds >= start + length / 2:
        return start, round(seconds, 3)
    raise UndecodableClip(
        f"It lasts {seconds:.1f} s, so it is neither the clip of {length:g} s nor the"
        f" video that shows it from {start:g} to {end:g} s."
    )
