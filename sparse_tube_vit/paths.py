"""Paths of files, on a disk or in a bucket."""

import os


def is_remote(path) -> bool:
    """Whether the path is a URL, as gs://BUCKET/FILE is."""
    return "://" in os.fspath(path)


def absolute(path) -> str:
    """The path from the root of its disk; a URL as it is.

    epath would look for a URL in the current directory.
    """
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)
