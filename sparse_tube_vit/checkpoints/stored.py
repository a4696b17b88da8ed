"""Stored models: finds and reads a checkpoint or a release, on a disk or at a URL.

A model is stored as a run's work directory, as one step of its checkpoints (see `run`),
or as a release: a folder of `model.safetensors`, the parameters by their paths;
`config.json`, the description of the run and of the release; and `README.md`, the model
card. None of them holds code.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from etils import epath
from flax.traverse_util import unflatten_dict

from sparse_tube_vit import storage
from sparse_tube_vit.checkpoints.hub import HubPath, is_hub
from sparse_tube_vit.checkpoints.step import (
    FOR_IMAGE_VITS,
    METADATA,
    ForeignCheckpoint,
    NoCheckpoint,
    UnfinishedCheckpoint,
    check_finished,
    damaged,
    latest_step,
    names_in,
    reading,
    restore_description,
    restore_params,
    step_numbers,
    unsealed,
)
from sparse_tube_vit.storage import SCHEMES, UnreachableStorage

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"

#: Dtypes of released parameters, by their names in safetensors.
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}

#: Release of the small model that comes with the package, of moving_shapes.
DEMO = Path(__file__).parents[1] / "demo"

_TRAIN = "Train first: sparse-tube-vit train --config FILE --workdir DIR"
_SCHEMES = (*SCHEMES, "hf")


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A trained model in memory.

    Attributes:
        name: What was read, in words: "step 700 of runs/x".
        description: Config, class names and versions, as of `run.describe_run`; of an
            image ViT without versions.
        step: Number of optimizer steps that it was trained for.
        averaged: Whether these are averaged parameters.
        params: A nested dict of numpy arrays, float32.
        workdir: The work directory of a checkpoint; None for a release, and for a step
            that was copied away from its run.
        why_headless: Why an image ViT's classifier is no head; "" for other models.
    """

    name: str
    description: dict
    step: int
    averaged: bool
    params: dict
    workdir: epath.Path | None = None
    why_headless: str = ""


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a finished checkpoint or a release is stored.

    Attributes:
        name: In words: "step 700 of runs/x", "release runs/x/release".
        folder: The step's or the release's folder.
        step: The step of a checkpoint; None for a release, whose config has it.
        workdir: As of `StoredModel`.
    """

    name: str
    folder: epath.Path | HubPath
    step: int | None = None
    workdir: epath.Path | None = None

    def read_description(self) -> dict:
        """Reads config, class names and versions, and no parameters.

        Raises:
            ForeignCheckpoint, DamagedCheckpoint, NewerCheckpoint.
        """
        with self._on_disk(CONFIG, "run") as folder:
            if self.step is None:
                return _read_config(folder, self.name)[0]
            return restore_description(folder)

    def read(self, ema: bool = True) -> StoredModel:
        """Reads everything.

        Args:
            ema: Whether to read the averaged parameters of a checkpoint that has them.

        Raises:
            ForeignCheckpoint, DamagedCheckpoint, NewerCheckpoint.
        """
        if self.step is None:
            return self._read_release()
        items = ("run", "checksums", METADATA, "params", *(("ema",) if ema else ()))
        with self._on_disk(*items) as folder:
            return StoredModel(
                name=self.name,
                description=restore_description(folder),
                step=self.step,
                averaged=ema and (folder / "ema").exists(),
                params=restore_params(folder, ema),
                workdir=self.workdir,
            )

    def _read_release(self):
        # The config first: the arrays of another program's model are not copied.
        with self._on_disk(CONFIG) as folder:
            run, release = _read_config(folder, self.name)
        with self._on_disk(WEIGHTS) as folder:
            if not (folder / WEIGHTS).exists():
                raise damaged(self.name, f"{WEIGHTS} is gone")
            data = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != release.get("sha256"):
            raise damaged(self.name, f"{WEIGHTS} is not what {CONFIG} says")
        with reading(self.name):
            arrays = safetensors.deserialize(data)
            if other := sorted({x["dtype"] for _, x in arrays} - set(DTYPES)):
                raise damaged(self.name, f"it has parameters of {', '.join(other)}")
            params = {
                name: np.frombuffer(x["data"], DTYPES[x["dtype"]])
                .reshape(x["shape"])
                .astype(np.float32)
                for name, x in arrays
            }
            params = unflatten_dict(params, sep="/")
        return StoredModel(
            name=self.name,
            description=run,
            step=release["step"],
            averaged=release["averaged"],
            params=params,
        )

    def _on_disk(self, *items):
        return on_disk(self.folder, items)


def read(path, step: int | None = None, ema: bool = True) -> StoredModel:
    """Finds and reads a model: see `locate` and `Location.read`."""
    return locate(path, step).read(ema)


def locate(path, step: int | None = None) -> Location:
    """Finds a finished checkpoint or a release.

    Args:
        path: A work directory, one step's directory below its `checkpoints`, or a
            release; local, or at gs:// or hf://. "demo" is the release that comes with
            the package; a folder of that name is "./demo".
        step: A step of a work directory; None for the latest finished one.

    Raises:
        NoCheckpoint: There is nothing, or nothing of that step.
        UnfinishedCheckpoint: Writing did not finish.
        ForeignCheckpoint: Another program wrote it.
        DamagedCheckpoint: A part is missing.
        UnreachableStorage: The URL is of an unknown kind, or its storage does not
            answer.
    """
    name = os.fspath(path)
    with storage.reaching(name):
        return _locate(open_path(name), step, name)


def open_path(path) -> epath.Path | HubPath:
    """Returns the path object of a local path, ~ expanded, or a URL of any kind.

    Raises:
        UnreachableStorage: The URL is of an unknown kind, or the Hub does not answer.
    """
    name = os.fspath(path)
    if name == "demo":
        return epath.Path(DEMO)
    if is_hub(name):
        return HubPath.of(name)
    scheme, _, rest = name.partition("://")
    if rest and scheme not in _SCHEMES:
        raise UnreachableStorage(
            f"{name} cannot be read: URLs begin with {'://, '.join(_SCHEMES)}://."
        )
    # A shell expands no ~ behind --model= or --config.init.weights=.
    return epath.Path(storage.absolute(os.path.expanduser(name)))


@contextlib.contextmanager
def on_disk(path: epath.Path | HubPath, items=None):
    """`storage.on_disk` for paths on the Hub too.

    Raises:
        UnreachableStorage: The storage does not answer.
    """
    if isinstance(path, HubPath):
        yield path.download(items)
        return
    with contextlib.ExitStack() as stack:
        with storage.reaching(path):
            local = stack.enter_context(storage.on_disk(path, items))
        yield local


def _locate(root, step, name):
    if not root.is_dir():
        raise NoCheckpoint(f"{name} {_no_model(root, name)}")
    names = names_in(root)
    if CONFIG in names or WEIGHTS in names:
        if step is not None:
            raise NoCheckpoint(f"{name} is a release, which has no other steps.")
        return Location(f"release {name}", root)
    if step_numbers([root.name]) and {"run", METADATA} & names:
        directory, step, shown = root.parent, int(root.name), name
    else:
        is_directory = root.name == "checkpoints" or step_numbers(names)
        directory = root if is_directory else root / "checkpoints"
        step = _choose_step(directory, step, name, names)
        shown = f"step {step} of {name.removesuffix('/checkpoints')}"
    folder = directory / str(step)
    check_finished(folder, shown)
    local = not isinstance(root, HubPath) and directory.name == "checkpoints"
    return Location(shown, folder, step, directory.parent if local else None)


def _no_model(root, name):
    """Returns why a path that is no directory is no model, and what may be meant."""
    if root.exists():
        return (
            "is a file, and a model is a directory. Weights of an image ViT are for "
            f"{FOR_IMAGE_VITS}."
        )
    why = "is no directory: there is no model to load."
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        why += f" One on the Hugging Face Hub is hf://{name}"
    return why


def _choose_step(directory, step, name, names_above):
    """Returns the step that is asked for, or the latest finished one."""
    if not directory.is_dir():
        if not names_above:
            raise NoCheckpoint(f"{name} is empty: there is no model. {_TRAIN}")
        some = ", ".join(sorted(names_above)[:5])
        raise ForeignCheckpoint(
            f"{name} holds {some}: neither a work directory with its checkpoints, nor "
            "one step of them, nor a release."
        )
    names = names_in(directory)
    if step is not None:
        steps = step_numbers(names)
        if step not in steps:
            raise NoCheckpoint(
                f"{name} has no checkpoint of step {step}; it has "
                f"{', '.join(map(str, steps)) or 'none'}."
            )
        return step
    if (step := latest_step(directory)) is not None:
        return step
    if names:
        raise UnfinishedCheckpoint(
            f"{name} has no complete checkpoint, but "
            f"{', '.join(sorted(names))}: the run was stopped while it saved its first."
        )
    raise NoCheckpoint(f"{name} has no checkpoint yet. {_TRAIN}")


def _read_config(folder: Path, name):
    """Reads a release's config.json: (run, section "release")."""
    if not (folder / CONFIG).exists():
        raise damaged(
            name,
            f"{CONFIG} is gone (if {WEIGHTS} is an image ViT's, give the file itself)",
        )
    with reading(name):
        run = json.loads((folder / CONFIG).read_text())
    run = unsealed(run, name)
    release = run.pop("release", None)
    if not isinstance(release, dict):
        raise ForeignCheckpoint(f"{name} is no release: {CONFIG} says nothing of one.")
    for key, kind in (("step", int), ("averaged", bool), ("sha256", str)):
        if type(release.get(key)) is not kind:
            raise damaged(name, f"{CONFIG} has no {key} of the release")
    return run, release
