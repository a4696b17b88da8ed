"""A trained model as it lies on a disk or in a bucket: a checkpoint, or a release.

A release is a folder of `model.safetensors`, the parameters under their paths in the
tree; `config.json`, what a checkpoint says of its run and what of it was released; and
`README.md`, the model card. Nothing in either runs code: they are JSON and arrays.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import posixpath
import tempfile
from pathlib import Path

import fsspec
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from sparse_tube_vit.checkpoints.run import (
    METADATA,
    DamagedCheckpoint,
    ForeignCheckpoint,
    NoCheckpoint,
    UnfinishedCheckpoint,
    check_description,
    latest_finished,
    read_description,
    read_metadata,
    read_params,
    reading,
)
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.storage import absolute, is_remote

ARRAYS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"

#: What parameters may be released in, by the names that safetensors has for them.
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}


class UnreachableStorage(TubeViTError, OSError):
    """A bucket that cannot be listed or read."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A trained model that was read.

    Attributes:
      name: what it is, in words: "step 700 of runs/x".
      run: config, class names and versions, see `checkpoints.describe_run`.
      step: optimizer steps that it was trained for.
      averaged: whether these are the averaged parameters.
      params: a nested dict of numpy arrays, float32.
      workdir: of the run whose checkpoint it is; None of a release, and of a step that
        was copied away from its run.
    """

    name: str
    run: dict
    step: int
    averaged: bool
    params: dict
    workdir: str | None = None


def read(path, step: int | None = None, ema: bool = True) -> Saved:
    """Reads a checkpoint or a release.

    Args:
      path: of a work directory, of one step's directory below its `checkpoints`, or of
        a release; local, or a URL that fsspec knows: gs://BUCKET/DIR needs gcsfs.
      step: of a work directory's checkpoints; None: the latest that is finished.
      ema: whether to take the averaged parameters of a checkpoint, if there are any.

    Raises:
      NoCheckpoint: there is nothing, or nothing of that step.
      UnfinishedCheckpoint: it is not written to its end.
      ForeignCheckpoint: it is of something else.
      DamagedCheckpoint: a part of it is lost or changed.
      NewerCheckpoint: a later version of this package wrote it.
      UnreachableStorage: the URL is none, or its bucket does not answer.
    """
    name = os.fspath(path)
    with _reached(name) as (files, root):
        shown, at, step = _locate(files, root, step, name)
        if step is None:
            with _at_hand(files, at, (CONFIG, ARRAYS)) as folder:
                return _read_release(folder, name)
        items = ("run", "checksums", "params", *(("ema",) if ema else ()))
        with _at_hand(files, at, items) as folder:
            return Saved(
                name=shown,
                run=read_description(folder.parent, step),
                step=step,
                averaged=ema and (folder / "ema").exists(),
                params=read_params(folder.parent, step, ema),
                workdir=_workdir(files, posixpath.dirname(at)),
            )


def read_run(path, step: int | None = None) -> tuple[str, dict]:
    """(name, run) of what `read` reads of the same, without reading parameters.

    Raises: as `read`, but for what is wrong with the parameters.
    """
    name = os.fspath(path)
    with _reached(name) as (files, root):
        shown, at, step = _locate(files, root, step, name)
        with _at_hand(files, at, ("run", CONFIG)) as folder:
            if step is None:
                run, _ = _read_config(folder, name)
            else:
                run = read_description(folder.parent, step)
            return shown, run


def _locate(files, root, step, name):
    """(what it is in words, its folder, its step) of a finished checkpoint or release.

    The step is None of a release, which has it in its config.
    """
    if not files.isdir(root):
        raise NoCheckpoint(f"{name} is no directory: there is no model to load.")
    found = {posixpath.basename(p.rstrip("/")) for p in files.ls(root, False)}
    if CONFIG in found or ARRAYS in found:
        if step is not None:
            raise NoCheckpoint(f"{name} is a release, which has no other steps.")
        return f"release {name}", root, None
    if posixpath.basename(root).isdigit() and _says_what_it_is(found):
        directory, step = posixpath.dirname(root), int(posixpath.basename(root))
        shown = name
    else:
        directory = root if _steps(found) else posixpath.join(root, "checkpoints")
        step = _choose_step(files, directory, step, name, found)
        shown = f"step {step} of {name}"
    at = posixpath.join(directory, str(step))
    _check_finished(files, at, shown)
    return shown, at, step


@contextlib.contextmanager
def _reached(name):
    """(file system of fsspec, path on it) of a path or a URL."""
    try:
        yield fsspec.core.url_to_fs(absolute(name))
    except TubeViTError:
        raise
    except Exception as error:  # of fsspec, or of whatever serves the protocol
        if not is_remote(name):
            raise
        why = str(error).strip() or type(error).__name__
        raise UnreachableStorage(f"{name} cannot be read: {why}") from error


@contextlib.contextmanager
def _at_hand(files, folder, items):
    """The folder as a local path; of one elsewhere, a copy of those items."""
    if isinstance(files, fsspec.implementations.local.LocalFileSystem):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, posixpath.basename(folder))
        copy.mkdir()
        for item in items:
            source = posixpath.join(folder, item)
            if files.exists(source):
                files.get(source, str(copy / item), recursive=files.isdir(source))
        yield copy


def _workdir(files, directory):
    """Path or URL of the work directory that a directory of steps is in, or None."""
    workdir, name = posixpath.split(directory)
    if name != "checkpoints":
        return None
    local = isinstance(files, fsspec.implementations.local.LocalFileSystem)
    return workdir if local else files.unstrip_protocol(workdir)


def _steps(names):
    return sorted(int(name) for name in names if name.isdigit())


def _says_what_it_is(names):
    return bool({"run", METADATA} & names)


def _choose_step(files, directory, step, name, found):
    """The step that is asked for, or the latest that is finished."""
    if not files.isdir(directory):
        if not found:
            raise NoCheckpoint(f"{name} is empty: there is no model to load.")
        some = ", ".join(sorted(found)[:5])
        raise ForeignCheckpoint(
            f"{name} holds {some}: neither a work directory with its checkpoints, nor "
            "one step of them, nor a release."
        )
    names = {posixpath.basename(p.rstrip("/")) for p in files.ls(directory, False)}
    steps = _steps(names)
    if step is not None and step not in steps:
        raise NoCheckpoint(
            f"{name} has no checkpoint of step {step}; it has "
            f"{', '.join(map(str, steps)) or 'none'}."
        )
    if step is not None:
        return step

    def metadata(step):
        return _metadata(files, posixpath.join(directory, str(step)))

    latest = latest_finished(steps, metadata, directory)
    if latest is not None:
        return latest
    if names:
        raise UnfinishedCheckpoint(
            f"{name} has no checkpoint that is written to its end, but "
            f"{', '.join(sorted(names))}: the run was stopped while it saved its first."
        )
    raise NoCheckpoint(
        f"{name} has no checkpoint yet. Train first: "
        "python -m sparse_tube_vit.train --config FILE --workdir DIR"
    )


def _metadata(files, folder):
    path = posixpath.join(folder, METADATA)
    return files.cat_file(path) if files.exists(path) else None


def _check_finished(files, folder, name):
    """Raises unless all of a step was written, by this package, and is there."""
    names = {posixpath.basename(p.rstrip("/")) for p in files.ls(folder, False)}
    metadata, items = _metadata(files, folder), {}
    if metadata is not None:
        items, finished = read_metadata(metadata, name)
        if not finished:
            raise UnfinishedCheckpoint(
                f"{name} is not written to its end. Take another step."
            )
    if not isinstance(items, dict) or not {"run", "params"} <= names | set(items):
        raise ForeignCheckpoint(
            f"{name} is not of sparse_tube_vit: it holds {', '.join(sorted(names))}, "
            "where run and params are needed."
        )
    lost = {"run", "params", *({"ema", "checksums"} & set(items))} - names
    if lost:
        raise DamagedCheckpoint(
            f"{name} is damaged: {', '.join(sorted(lost))} is gone. Copy it again, or "
            "take another step."
        )


# ---- releases


def _read_config(folder, name):
    """(run, what of it was released)."""
    with reading(folder / CONFIG):
        run = json.loads((folder / CONFIG).read_text())
    check_description(run, name)
    release = run.pop("release", None)
    if not isinstance(release, dict):
        raise ForeignCheckpoint(f"{name} is no release: {CONFIG} says nothing of one.")
    return run, release


def _read_release(folder, name):
    for file in (CONFIG, ARRAYS):
        if not (folder / file).exists():
            raise DamagedCheckpoint(
                f"{name} is damaged: {file} is gone. Copy it again."
            )
    run, release = _read_config(folder, name)
    data = (folder / ARRAYS).read_bytes()
    if hashlib.sha256(data).hexdigest() != release.get("sha256"):
        raise DamagedCheckpoint(
            f"{name} is damaged: {ARRAYS} is not what {CONFIG} says. Copy it again."
        )
    with reading(folder / ARRAYS):
        params = {
            array: np.frombuffer(x["data"], DTYPES[x["dtype"]])
            .reshape(x["shape"])
            .astype(np.float32)
            for array, x in safetensors.deserialize(data)
        }
    return Saved(
        name=f"release {name}",
        run=run,
        step=release["step"],
        averaged=release["averaged"],
        params=unflatten_dict(params, sep="/"),
    )
