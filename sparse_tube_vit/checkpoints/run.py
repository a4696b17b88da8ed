"""Checkpoints of a run: saving, resuming, and reading one step. All of orbax is here.

`WORKDIR/checkpoints/<step>` holds the items `params`, `ema` (where an average is kept)
and `optimizer`, unstacked trees of arrays, the latter two of trained parameters only;
`run`, JSON with the whole config, the class names of every head, package versions and
the `FORMAT`; and `checksums`, JSON with one checksum per array.

`stored` finds a step and reads it for everything but resuming.
"""

import contextlib
import importlib.metadata
import json

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

_PACKAGES = ("sparse_tube_vit", "jax", "flax", "optax", "orbax-checkpoint", "numpy")

#: Version of the checkpoint format. Newer versions are refused; keys missing from older
#: ones take their defaults. The first checkpoints had no version: they count as 0.
FORMAT = 1

#: Orbax's file of a step with its items and the time at which it was finished.
METADATA = "_CHECKPOINT_METADATA"

#: Keys that may change on resume: they do not affect the result.
RESUMABLE_KEYS = (
    "checkpoint",
    "compilation_cache",
    "data",  # the streams name the data set that was made from it
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
    """A path without a finished checkpoint or release."""


class UnfinishedCheckpoint(NoCheckpoint):
    """A checkpoint whose writing did not finish."""


class ForeignCheckpoint(TubeViTError, ValueError):
    """A checkpoint or folder that another program wrote."""


class DamagedCheckpoint(TubeViTError, ValueError):
    """A checkpoint or release with a missing or changed part."""


class NewerCheckpoint(TubeViTError, ValueError):
    """A checkpoint in the format of a newer version of this package."""


class OtherRun(TubeViTError, ValueError):
    """A work directory of a run with another config or other classes."""


def describe_run(config: ConfigDict, class_names: dict[str, tuple[str, ...]]) -> dict:
    """Returns a run's config, class names and package versions as JSON types."""
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
    """The checkpoints of a run in training, written in the background.

    Args:
        workdir: The run's work directory, local or gs://.
        keep: Number of latest checkpoints to keep.
        run: Description of the run by `describe_run`.
    """

    def __init__(self, workdir, keep: int, run: dict):
        self.directory = epath.Path(absolute(workdir)) / "checkpoints"
        self.run = run
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
        )

    @property
    def resumable(self) -> bool:
        """Whether the work directory has a checkpoint to resume from."""
        return self.manager.latest_step() is not None

    def resume(self, state):
        """Restores the latest checkpoint's state.

        Args:
            state: A `TrainState` of arrays, or of their shapes, dtypes and shardings.
                The restored arrays get the same shardings.

        Raises:
            OtherRun: The checkpoint has another config or other classes, or no
                optimizer state.
            DamagedCheckpoint: A part is missing, or differs from what was saved.
        """
        step = self.manager.latest_step()
        root = self.directory / str(step)
        self._check_run(restore_description(root))
        if not (root / "optimizer").exists():
            raise OtherRun(
                f"{self.directory.parent} holds parameters to start from and no run. "
                "Choose another --workdir, with config.init.weights naming this one."
            )
        items = _items(state)
        targets = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items
        )
        args = {k: ocp.args.StandardRestore(v) for k, v in targets.items()}
        with reading(root):
            restored = self.manager.restore(step, args=ocp.args.Composite(**args))
            saved = _restore_checksums(root)
        for name, checksum in _checksums({k: restored[k] for k in items}).items():
            # Older checkpoints have none for the optimizer's arrays, or none at all.
            if saved.get(name, checksum) != checksum:
                raise damaged(root, f"{name} is not what was saved")
        log.info("Resumed from step %d in %s", step, self.directory)
        return state.replace(
            step=jax.device_put(np.int32(step), state.step.sharding),
            params=restored["params"],
            optimizer=restored["optimizer"],
            ema=restored["ema"] if state.ema is not None else None,
        )

    def save(self, state) -> None:
        """Saves a `TrainState` in the background. Its arrays may be donated at once."""
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
        """Waits until everything is written."""
        self.manager.wait_until_finished()
        self.manager.close()

    def _check_run(self, saved):
        # Keys added since the checkpoint was saved take their defaults.
        saved = saved | {"config": json.loads(from_json(saved["config"]).to_json())}
        changed = [
            f"  {key}: {before!r} then, {now!r} now"
            for section in ("config", "class_names")
            for key, before, now in differences(saved[section], self.run[section])
            if section == "class_names"
            or not f"{key}.".startswith(tuple(f"{k}." for k in RESUMABLE_KEYS))
        ]
        if changed:
            raise OtherRun(
                f"{self.directory.parent} holds a run with other settings:\n"
                + "\n".join(changed)
                + "\nChoose another --workdir, or set them as they were to resume."
            )


def save_params(workdir, params, run: dict) -> None:
    """Saves parameters as the checkpoint of step 0, for other runs to start from.

    Args:
        workdir: Work directory without checkpoints, local or gs://.
        params: All parameters of a model.
        run: Description of the model by `describe_run`.

    Raises:
        OtherRun: The work directory has checkpoints already.
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


def read_metadata(root, name=None) -> tuple[dict, bool]:
    """Returns a step's items by name, and whether the step is finished.

    On a disk an unfinished step has a temporary name; in a bucket it has its final
    name from the start, and only the file `METADATA` tells. Steps without that file,
    of older versions of orbax, count as finished and without items.

    Args:
        root: The step's directory.
        name: What errors call it, if not by its path.

    Raises:
        DamagedCheckpoint: The file is not what orbax writes.
    """
    if not (root / METADATA).exists():
        return {}, True
    with reading(name or root):
        metadata = json.loads((root / METADATA).read_bytes())
        items, time = metadata["item_handlers"], metadata["commit_timestamp_nsecs"]
    return (items if isinstance(items, dict) else {}), time is not None


def restore_description(root) -> dict:
    """Restores the description of the run, as of `describe_run`, from a step.

    Args:
        root: The step's directory, on a disk or at gs://.

    Raises:
        NoCheckpoint, ForeignCheckpoint, DamagedCheckpoint, NewerCheckpoint.
    """
    root = epath.Path(absolute(root))
    if not (root / "run").exists():
        raise NoCheckpoint(f"{root} is not a finished checkpoint of this package.")
    with reading(root / "run"):
        run = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(root / "run")
    check_description(run, root)
    return run


def check_description(run, where) -> None:
    """Raises ForeignCheckpoint or NewerCheckpoint unless this version can read `run`.

    Args:
        run: JSON where `describe_run` would have written a description.
        where: The path of the checkpoint or release, for errors.
    """
    needed = ("config", "class_names", "versions")
    if not isinstance(run, dict) or any(
        not isinstance(run.get(k), dict) for k in needed
    ):
        raise ForeignCheckpoint(
            f"{where} is not of sparse_tube_vit: it does not say its "
            f"{', '.join(needed)}."
        )
    if (number := run.get("format", 0)) > FORMAT:
        version = run["versions"].get("sparse_tube_vit", "a newer one")
        raise NewerCheckpoint(
            f"{where} has format {number}, of sparse_tube_vit {version}; this version "
            f"reads formats up to {FORMAT}. Upgrade sparse_tube_vit."
        )


@contextlib.contextmanager
def reading(path):
    """Turns errors that libraries raise while reading `path` into DamagedCheckpoint.

    Errors of jax (out of memory, a lost host) and named errors pass through.
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


def restore_params(root, ema: bool = True) -> dict:
    """Restores a step's parameters as numpy arrays, on any number of devices.

    Args:
        root: The step's directory, on a disk or at gs://.
        ema: Whether to restore averaged parameters, where there are any.

    Raises:
        NoCheckpoint, DamagedCheckpoint.
    """
    root = epath.Path(absolute(root))
    if not (root / "params").exists():
        raise NoCheckpoint(f"{root} holds no parameters.")
    params, checksums = {}, _restore_checksums(root)
    for item in ("ema", "params") if ema else ("params",):
        if (root / item).exists():  # frozen parameters have no average
            with reading(root / item):
                arrays = _restore_arrays(root / item, exclude=params)
            for path, x in arrays.items():
                name = "/".join((item, *path))
                if checksums and checksums.get(name) != int(_checksum(x, np)):
                    raise damaged(root, f"{name} is not what was saved")
            params |= arrays
    return unflatten_dict(params)


def _restore_checksums(root) -> dict[str, int]:
    """Returns the checksums of a step's arrays by path; {} of older checkpoints."""
    path = root / "checksums"
    if not path.exists():
        if "checksums" in read_metadata(root)[0]:
            raise damaged(root, "its checksums are gone")
        return {}
    with reading(path):
        return dict(ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path))


def damaged(name, why: str) -> DamagedCheckpoint:
    """Returns the error of a damaged checkpoint or release."""
    return DamagedCheckpoint(
        f"{name} is damaged: {why}. Copy it again, or take another step."
    )


def _checksums(items):
    """Returns the checksum of every array of the items by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(x)
        for path, x in jax.tree.leaves_with_path(jax.device_get(_sums(items)))
    }


@jax.jit  # compiled for the first checkpoint of a run, not for each
def _sums(items):
    return jax.tree.map(lambda x: _checksum(x, jnp), items)


def _checksum(x, xp):
    """Returns the sum of an array's bits as integers, without moving its shards."""
    return x.view(f"uint{8 * x.dtype.itemsize}").sum(dtype=xp.uint32)


def _restore_arrays(path, exclude):
    """Returns the arrays of a tree by path, in numpy, except those of `exclude`."""
    checkpointer = ocp.PyTreeCheckpointer()
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)  # warns of files that no item has
    try:
        metadata = checkpointer.metadata(path).item_metadata
    finally:
        absl_logging.set_verbosity(verbosity)
    if metadata is None:
        raise damaged(path, "its _METADATA is gone")
    target = {
        name: np.empty(x.shape, x.dtype)
        for name, x in flatten_dict(metadata.tree).items()
        if name not in exclude
    }
    if not target:
        return {}
    target = unflatten_dict(target)
    restore = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    return flatten_dict(checkpointer.restore(path, restore))
