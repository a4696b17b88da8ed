"""Releases: a trained model as a folder of files, see `stored`."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict

from sparse_tube_vit.checkpoints import hub, stored
from sparse_tube_vit.checkpoints.evaluations import read_evaluations
from sparse_tube_vit.checkpoints.model_card import model_card
from sparse_tube_vit.checkpoints.step import sealed
from sparse_tube_vit.checkpoints.stored import (
    CARD,
    CONFIG,
    WEIGHTS,
    StoredModel,
)
from sparse_tube_vit.config import from_json
from sparse_tube_vit.errors import TubeViTError, UnwritableOutput
from sparse_tube_vit.log import log
from sparse_tube_vit.storage import (
    UnreachableStorage,
    is_remote,
    locked,
    temporary,
    writing,
)

#: Patterns of exported programs: uploading removes those that the release lacks.
PROGRAMS = ("*.stablehlo", "export.json")


def release(
    path,
    directory,
    step: int | None = None,
    ema: bool = True,
    dtype: str = "float32",
    license: str = "",
    overwrite: bool = False,
    push: str = "",
    private: bool = False,
    add: Callable[[Path, StoredModel], str] | None = None,
) -> StoredModel:
    """Writes a stored model as a release; returns the model.

    Args:
        path: The model: a work directory, one step of its checkpoints, or another
            release; local, gs:// or hf://.
        directory: The release's folder, on a local disk.
        step, ema: As for `stored.read`.
        dtype, overwrite: As for `write_folder`.
        license: The weights' license for the model card, such as "cc-by-4.0".
        push: hf://USER/NAME to upload the release to; "" to upload nothing.
        private: Whether the repository is private, if uploading creates it.
        add: As for `write_folder`.

    Raises:
        UnreachableStorage: The model cannot be read; or the release, which is written
            by then, cannot be uploaded.
        The other errors of `stored.read` and `write_folder`.
    """
    if push:
        hub.check_repository(push)
    model = stored.read(path, step, ema)
    folder = Path(directory).resolve()
    if folder.name == "release":  # as training writes it, to WORKDIR/release
        folder = folder.parent
    name = push.removeprefix("hf://") or folder.name
    card = model_card(name, push or ".", model, dtype, evaluations(model), license)
    write_folder(directory, model, card, dtype, overwrite, add)
    if push:
        try:
            message = f"Upload {model.name}"
            hub.push(directory, push, private, message, replaced=PROGRAMS)
        except UnreachableStorage as error:
            message = f"{error} The release itself is in {directory}."
            raise UnreachableStorage(message) from error
    return model


def evaluations(model: StoredModel) -> list[dict]:
    """Returns the results that the model's run wrote for these very parameters."""
    config = from_json(model.description["config"])
    if model.workdir is None or (config.optimizer.ema_decay and not model.averaged):
        return []  # where there are averaged parameters, only they are evaluated
    results = read_evaluations(model.workdir / "evaluations").values()
    return [result for result in results if result["step"] == model.step]


class ReleaseExists(TubeViTError, FileExistsError):
    """A release's directory that exists already."""


def write_folder(
    directory,
    model: StoredModel,
    card: str,
    dtype: str = "float32",
    overwrite: bool = False,
    add: Callable[[Path, StoredModel], str] | None = None,
) -> None:
    """Writes the folder of a release, all of it or nothing.

    Args:
        directory: The folder, on a local disk. It must not exist.
        model: The model.
        card: The model card, in Markdown.
        dtype: The dtype of the parameters, "float32" or "bfloat16".
        overwrite: Whether to replace an existing release.
        add: A function of the folder and the model that adds files of its own and
            returns text, in Markdown, for the end of the card.

    Raises:
        ReleaseExists: The directory exists and is no release, or `overwrite` is False.
        UnwritableOutput: The directory cannot be written.
    """
    directory = Path(directory)
    _restore(directory)
    if directory.exists():
        is_release = {CONFIG, WEIGHTS} <= {p.name for p in directory.glob("*")}
        if not (overwrite and is_release):
            raise ReleaseExists(
                f"{directory} exists and is "
                + (
                    "a release: give --overwrite to replace it."
                    if is_release
                    else "no release. Choose another --out."
                )
            )
    arrays = {
        name: np.asarray(x, np.dtype(dtype), order="C")
        for name, x in flatten_dict(model.params, sep="/").items()
    }
    data = safetensors.numpy.save(arrays, metadata={"format": "sparse_tube_vit"})
    release = {
        "step": model.step,
        "averaged": model.averaged,
        "dtype": dtype,
        "parameters": sum(x.size for x in arrays.values()),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    # Written beside its place, then renamed.
    new = temporary(directory)
    try:
        new.mkdir(parents=True)
        with locked(new, wait_seconds=0):
            (new / WEIGHTS).write_bytes(data)
            text = json.dumps(
                sealed(model.description | {"release": release}), indent=1
            )
            (new / CONFIG).write_text(f"{text}\n")
            more = f"\n{add(new, model)}\n" if add else ""
            (new / CARD).write_text(card + more, encoding="utf-8")
        if directory.exists():
            directory.rename(directory.parent / f"{new.name[1:]}.old")
        new.rename(directory)
    except OSError as error:
        raise UnwritableOutput(f"{directory} cannot be written: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        _restore(directory)


def _restore(directory):
    """Puts a release back that was moved away, unless another is in its place."""
    moved = re.compile(rf"{re.escape(directory.name)}\.[0-9a-f]{{32}}\.old")
    for old in sorted(directory.parent.glob("*.old")):
        if not moved.fullmatch(old.name):
            continue
        if (directory / CONFIG).exists():
            shutil.rmtree(old, ignore_errors=True)
        elif not directory.exists():
            log.warning("Putting %s back: replacing it was interrupted", directory)
            with writing(directory):
                old.rename(directory)


def release_last(workdir) -> None:
    """Writes a run's last checkpoint to WORKDIR/release, in place of an earlier one."""
    if is_remote(workdir):
        log.warning(
            "A release is written to a local disk: sparse-tube-vit release "
            "--workdir %s --out DIR",
            workdir,
        )
        return
    try:
        model = release(workdir, workdir / "release", overwrite=True)
    except ReleaseExists as error:
        raise ReleaseExists(
            f"{workdir}/release exists and is no release, so that the run's could not "
            "be written. Move it, and give the same command again."
        ) from error
    log.info("Wrote %s as a release to %s/release", model.name, workdir)
