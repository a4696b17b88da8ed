"""All of orbax: save, resume, and read for inference.

`WORKDIR/checkpoints/<step>` holds the items `params`, `ema` (where one is kept) and
`optimizer` (both of what is trained), unstacked trees of arrays; `run`: JSON with the
whole config, the class names of every head, the versions of the packages, and the
`FORMAT` of all this; and `checksums`: JSON with one of every array of the items.
"""

import contextlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from sparse_tube_vit.config import ConfigDict, differences, from_json
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.log import log
from sparse_tube_vit.storage import absolute
from sparse_tube_vit.training.state import TrainState

_PACKAGES = ("sparse_tube_vit", "jax", "flax", "optax", "orbax-checkpoint", "numpy")

#: Of what is saved. What a later one says cannot be read; what an earlier one lacks has
#: its default. The first to say so is 1.
FORMAT = 1

#: The file in which orbax says of a checkpoint whether all of it is written.
METADATA = "_CHECKPOINT_METADATA"

#: What a resumed run may set otherwise: none of it changes what is learnt.
FREE_KEYS = (
    "checkpoint",
    "compilation_cache",
    "data",  # what follows from it is in the streams
    "data_dir",
    "evaluate_every_steps",
    "evaluations",
    "loader",
    "log_every_steps",
    "mesh",
    "model.attention",
    "model.remat",
    "model.scan",
    "optimizer.accumulate_steps",
    "profile_steps",
)


class NoCheckpoint(TubeViTError, FileNotFoundError):
    """There is no finished checkpoint where one is needed."""


class UnfinishedCheckpoint(NoCheckpoint):
    """A checkpoint that is not written to its end."""


class ForeignCheckpoint(TubeViTError, ValueError):
    """What lies there is not of this package."""


class DamagedCheckpoint(TubeViTError, ValueError):
    """A part of a checkpoint or release is lost or changed."""


class NewerCheckpoint(TubeViTError, ValueError):
    """A newer version of this package wrote it, in a format unknown to this one."""


class OtherRun(TubeViTError, ValueError):
    """The work directory belongs to a run with another config or other classes."""


def describe_run(config: ConfigDict, class_names: dict[str, tuple[str, ...]]) -> dict:
    """What a checkpoint says of its run, as plain JSON types."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree
            versions[package] = "not installed"
    return {
        "format": FORMAT,
        "config": json.loads(config.to_json()),
        "class_names": {head: list(names) for head, names in class_names.items()},
        "versions": versions,
    }


class Checkpoints:
    """The checkpoints of a run in training, written in the background."""

    def __init__(self, workdir, keep: int, run: dict):
        self.directory = epath.Path(absolute(workdir)) / "checkpoints"
        self.run = run
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
        )

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.manager.latest_step() is not None

    def resume(self, state: TrainState) -> TrainState:
        """The latest checkpoint's state, on the devices that `state` says.

        Args:
          state: of arrays, or of their shapes, dtypes and shardings.

        Raises:
          OtherRun: it was written with another config or for other classes.
          DamagedCheckpoint: a part of it is lost, or not what was saved.
        """
        step = self.manager.latest_step()
        self._check_run(read_description(self.directory, step))
        if not (self.directory / str(step) / "optimizer").exists():
            raise OtherRun(
                f"{self.directory.parent} holds parameters to start from and no run. "
                "Choose another --workdir, with config.init.weights naming this one."
            )
        items = _items(state)
        targets = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items
        )
        root = self.directory / str(step)
        args = {k: ocp.args.StandardRestore(v) for k, v in targets.items()}
        with reading(root):
            restored = self.manager.restore(step, args=ocp.args.Composite(**args))
            said = _read_checksums(root)
        for name, checksum in _checksums({k: restored[k] for k in items}).items():
            # Older checkpoints have none of the optimizer's arrays, or none at all.
            if said.get(name, checksum) != checksum:
                raise _damaged(root, f"{name} is not what was saved")
        log.info("Resumed from step %d in %s", step, self.directory)
        return TrainState(
            step=jax.device_put(np.int32(step), state.step.sharding),
            params=restored["params"],
            optimizer=restored["optimizer"],
            ema=restored["ema"] if state.ema is not None else None,
        )

    def save(self, state: TrainState) -> None:
        """Writes the state in the background; the arrays may be donated at once."""
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        self.manager.save(
            step,
            args=ocp.args.Composite(
                run=ocp.args.JsonSave(self.run),
                checksums=ocp.args.JsonSave(_checksums(_items(state))),
                **{k: ocp.args.StandardSave(v) for k, v in _items(state).items()},
            ),
        )

    def close(self) -> None:
        """Waits until all is written."""
        self.manager.wait_until_finished()
        self.manager.close()

    def _check_run(self, saved):
        # Keys that were added since it was saved have their defaults.
        saved = saved | {"config": json.loads(from_json(saved["config"]).to_json())}
        changed = [
            f"  {key}: {before!r} then, {now!r} now"
            for section in ("config", "class_names")
            for key, before, now in differences(saved[section], self.run[section])
            if section == "class_names"
            or not f"{key}.".startswith(tuple(f"{free}." for free in FREE_KEYS))
        ]
        if changed:
            raise OtherRun(
                f"{self.directory.parent} holds a run with other settings:\n"
                + "\n".join(changed)
                + "\nChoose another --workdir, or set them as they were to resume."
            )


def save_params(workdir, params, run: dict) -> None:
    """Writes parameters as the checkpoint of step 0, to start other runs from.

    Args:
      workdir: where no run is.
      params: all parameters of a model.
      run: as of `describe_run`.

    Raises:
      OtherRun: the work directory has checkpoints already.
    """
    directory = epath.Path(absolute(workdir)) / "checkpoints"
    with ocp.CheckpointManager(directory) as manager:
        if manager.all_steps():
            raise OtherRun(
                f"{workdir} has checkpoints already. Choose another --workdir."
            )
        manager.save(
            0,
            args=ocp.args.Composite(
                run=ocp.args.JsonSave(run),
                checksums=ocp.args.JsonSave(_checksums({"params": params})),
                params=ocp.args.StandardSave(params),
            ),
        )


def _items(state):
    items = {"params": state.params, "optimizer": state.optimizer}
    return items | ({"ema": state.ema} if state.ema is not None else {})


def latest_step(workdir) -> int:
    """Step of the latest finished checkpoint of a work directory.

    Raises:
      NoCheckpoint: there is none.
      DamagedCheckpoint: a later one does not say whether it is finished.
    """
    directory = epath.Path(workdir) / "checkpoints"
    there = directory.iterdir() if directory.exists() else []
    steps = [int(path.name) for path in there if path.name.isdigit()]

    def metadata(step):
        path = directory / str(step) / METADATA
        return path.read_bytes() if path.exists() else None

    step = latest_finished(steps, metadata, directory)
    if step is None:
        raise NoCheckpoint(
            f"{workdir} has no finished checkpoint below {directory}. Train first: "
            "python -m sparse_tube_vit.train --config FILE --workdir DIR"
        )
    return step


def latest_finished(
    steps: Iterable[int], metadata: Callable[[int], bytes | None], directory
) -> int | None:
    """The latest step that does not say that it is unfinished; None if all do.

    Args:
      steps: of a directory.
      metadata: gives what a step's file `METADATA` holds; None where there is none.
      directory: its name, for errors.

    Raises:
      DamagedCheckpoint: that file says nothing of it.
    """
    for step in sorted(steps, reverse=True):
        said = metadata(step)
        if said is None or read_metadata(said, f"{directory}/{step}")[1]:
            return step
    return None


def read_metadata(said: bytes, name) -> tuple[dict, bool]:
    """(items, whether all is written) by a checkpoint's file `METADATA`.

    On a disk it is renamed when it is finished; what is being written to a bucket has
    its name already.

    Raises:
      DamagedCheckpoint.
    """
    with reading(name):
        said = json.loads(said)
        return said["item_handlers"], said["commit_timestamp_nsecs"] is not None


def read_description(directory, step: int) -> dict:
    """What the checkpoint `directory/<step>` says of its run, see `describe_run`.

    Raises:
      NoCheckpoint, ForeignCheckpoint, DamagedCheckpoint, NewerCheckpoint.
    """
    path = epath.Path(absolute(directory)) / str(step) / "run"
    if not path.exists():
        raise NoCheckpoint(
            f"{path.parent} is not a finished checkpoint of this package."
        )
    with reading(path):
        run = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path)
    check_description(run, path.parent)
    return run


def check_description(run, where) -> None:
    """Raises ForeignCheckpoint or NewerCheckpoint unless `run` says what ours do."""
    needed = ("config", "class_names", "versions")
    if not isinstance(run, dict) or any(
        not isinstance(run.get(k), dict) for k in needed
    ):
        raise ForeignCheckpoint(
            f"{where} is not of sparse_tube_vit: it does not say its "
            f"{', '.join(needed)}."
        )
    if (found := run.get("format", 0)) > FORMAT:
        version = run["versions"].get("sparse_tube_vit", "a newer one")
        raise NewerCheckpoint(
            f"{where} has format {found}, of sparse_tube_vit {version}; this version "
            f"reads formats up to {FORMAT}. Upgrade sparse_tube_vit."
        )


@contextlib.contextmanager
def reading(path):
    """Names as DamagedCheckpoint whatever a library raises within the block.

    But not what jax does, as where memory runs out or another host is gone.
    """
    try:
        yield
    except (TubeViTError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # each reader has its own for damaged files
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedCheckpoint(
            f"{path} is damaged: {why[0][:300]} Copy it again, or take another step."
        ) from error


def read_params(directory, step: int, ema: bool = True) -> dict:
    """Parameters of `directory/<step>` as numpy arrays.

    Needs no mesh: works on any number of devices.

    Args:
      directory, step: of a checkpoint.
      ema: whether to read the averaged parameters where there are any.

    Raises:
      NoCheckpoint, DamagedCheckpoint.
    """
    root = epath.Path(absolute(directory)) / str(step)
    if not (root / "params").exists():
        raise NoCheckpoint(f"{root} holds no parameters.")
    found, checksums = {}, _read_checksums(root)
    for item in ("ema", "params") if ema else ("params",):
        if (root / item).exists():  # frozen parameters have no average
            with reading(root / item):
                arrays = _read_arrays(root / item, found)
            for path, x in arrays.items():
                name = "/".join((item, *path))
                if checksums and checksums.get(name) != int(_checksum(x, np)):
                    raise _damaged(root, f"{name} is not what was saved")
            found |= arrays
    return unflatten_dict(found)


def _read_checksums(root) -> dict[str, int]:
    """The checksums of a checkpoint's arrays by their paths; older ones have none."""
    path, metadata = root / "checksums", root / METADATA
    if not path.exists():
        said = metadata.read_bytes() if metadata.exists() else None
        if said is not None and "checksums" in read_metadata(said, root)[0]:
            raise _damaged(root, "its checksums are gone")
        return {}
    with reading(path):
        return dict(ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path))


def _damaged(root, why):
    return DamagedCheckpoint(
        f"{root} is damaged: {why}. Copy it again, or take another step."
    )


def _checksums(items):
    """The checksum of every array of the items, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(x)
        for path, x in jax.tree.leaves_with_path(jax.device_get(_sums(items)))
    }


@jax.jit  # compiled for the first checkpoint of a run, not for each
def _sums(items):
    return jax.tree.map(lambda x: _checksum(x, jnp), items)


def _checksum(x, xp):
    """The sum of an array's bits as integers; computed where its shards lie."""
    return x.view(f"uint{8 * x.dtype.itemsize}").sum(dtype=xp.uint32)


def _read_arrays(path, known):
    """The arrays of a tree in numpy, flat, without those known already."""
    checkpointer = ocp.PyTreeCheckpointer()
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)  # warns of files that no item has
    try:
        found = checkpointer.metadata(path).item_metadata
    finally:
        absl_logging.set_verbosity(verbosity)
    if found is None:
        raise _damaged(path, "its _METADATA is gone")
    metadata = flatten_dict(found.tree)
    wanted = {k: m for k, m in metadata.items() if k not in known}
    if not wanted:
        return {}
    target = unflatten_dict({k: np.empty(m.shape, m.dtype) for k, m in wanted.items()})
    restore = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    return flatten_dict(checkpointer.restore(path, restore))
