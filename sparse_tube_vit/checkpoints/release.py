"""Releases: a trained model as a folder of three files."""

import hashlib
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict

from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.model_card import model_card
from sparse_tube_vit.checkpoints.stored import ARRAYS, CARD, CONFIG, Saved
from sparse_tube_vit.config import from_json
from sparse_tube_vit.errors import TubeViTError, UnwritableOutput
from sparse_tube_vit.log import log
from sparse_tube_vit.storage import is_remote


def release(
    workdir,
    directory,
    step: int | None = None,
    ema: bool = True,
    dtype: str = "float32",
    license: str = "",
    overwrite: bool = False,
) -> Saved:
    """Writes the checkpoint of a run as a release; returns what was released.

    Args:
      workdir: of the run, or one step of its checkpoints; local or gs://.
      directory: of the release, on a local disk.
      step, ema: as for `stored.read`.
      dtype, overwrite: as for `write_release`.
      license: of the weights, for the model card, as "cc-by-4.0".

    Raises: the errors of `stored.read` and `write_release`.
    """
    found = stored.read(workdir, step, ema)
    results = evaluations(found)
    card = model_card(Path(directory).name, found, dtype, results, license)
    write_release(directory, found, card, dtype, overwrite)
    return found


def evaluations(found: Saved) -> list[dict]:
    """What was measured of these parameters, as `evaluate` wrote it in their run."""
    config = from_json(found.run["config"])
    if found.workdir is None or (config.optimizer.ema_decay and not found.averaged):
        return []  # of those in training nothing is measured where there is an average
    paths = sorted((epath.Path(found.workdir) / "evaluations").glob("*.json"))
    results = [json.loads(path.read_text()) for path in paths]
    return [result for result in results if result["step"] == found.step]


class ReleaseExists(TubeViTError, FileExistsError):
    """There is something already where a release is to be written."""


def write_release(
    directory, saved: Saved, card: str, dtype: str = "float32", overwrite: bool = False
) -> None:
    """Writes a release, all of it or nothing.

    Args:
      directory: of the release, on a local disk. It must not be there.
      saved: what is released.
      card: the model card, in Markdown.
      dtype: "float32" or "bfloat16", of the parameters.
      overwrite: whether a release may be there, to be replaced.

    Raises:
      ReleaseExists: something else is there, or a release and not `overwrite`.
      UnwritableOutput: the directory cannot be written.
    """
    directory = Path(directory)
    if directory.exists():
        is_release = {CONFIG, ARRAYS} <= {p.name for p in directory.glob("*")}
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
        name: np.ascontiguousarray(x, np.dtype(dtype))
        for name, x in flatten_dict(saved.params, sep="/").items()
    }
    data = safetensors.numpy.save(arrays, metadata={"format": "sparse_tube_vit"})
    release = {
        "step": saved.step,
        "averaged": saved.averaged,
        "dtype": dtype,
        "parameters": sum(x.size for x in arrays.values()),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    # Written beside its place, which it takes by being renamed.
    new = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    old = new.with_name(f"{new.name}.old")
    try:
        new.mkdir(parents=True)
        (new / ARRAYS).write_bytes(data)
        text = json.dumps(saved.run | {"release": release}, indent=1)
        (new / CONFIG).write_text(f"{text}\n")
        (new / CARD).write_text(card)
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
    except OSError as error:
        if old.exists() and not directory.exists():
            old.rename(directory)
        raise UnwritableOutput(f"{directory} cannot be written: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def release_last(workdir) -> None:
    """Writes a run's last checkpoint to WORKDIR/release, in place of an earlier one."""
    if is_remote(workdir):
        log.warning(
            "A release is written to a local disk: python -m sparse_tube_vit.release "
            "--workdir %s --out DIR",
            workdir,
        )
        return
    found = release(workdir, workdir / "release", overwrite=True)
    log.info("Wrote %s as a release to %s/release", found.name, workdir)
