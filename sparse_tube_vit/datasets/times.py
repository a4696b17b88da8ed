"""Times of clips and of labels within videos, in seconds after the first frame."""

from sparse_tube_vit.video.limits import UndecodableClip

#: Feature of records with the start and end of the part of the file that is the clip;
#: empty where it is all of it.
SPAN = "clip_seconds"
#: Feature of records with a row (class, start, end) for each action.
ACTIONS = "action_seconds"


def span_in_file(
    seconds: float, start: float, end: float, shared: bool = False
) -> tuple[float, float] | None:
    """Returns which part of a file is the clip from `start` to `end` of its video.

    A file is the clip itself if it has about the clip's length; or if it ends before
    the clip does in the video and is at most twice as long, as when cut at key frames.
    If `shared`, such a file may be any of the video's clips.

    Args:
        seconds: Duration of the file.
        start: Start of the clip in the video, in seconds.
        end: End of the clip in the video, in seconds.
        shared: Whether other clips are of the same video.

    Returns:
        Start and end in seconds; None if the file is the clip.

    Raises:
        UndecodableClip: The file is neither the clip nor the video, or of several
            clips it may be any.
    """
    length = end - start
    if seconds >= end - 1 and seconds > length + 1:
        return start, round(min(end, seconds), 3)
    if seconds <= max(2 * length, length + 1):
        if not shared:
            return None
        raise UndecodableClip(
            f"It lasts {seconds:.1f} s, so it may be any clip of a video of which"
            " several are listed: name it <id>_<start>_<end>."
        )
    if seconds >= start + length / 2:
        return start, round(seconds, 3)
    raise UndecodableClip(
        f"It lasts {seconds:.1f} s, so it is neither the clip of {length:g} s nor the"
        f" video that shows it from {start:g} to {end:g} s."
    )
