"""One step of a run's checkpoints: finding, checking and reading it.

`WORKDIR/checkpoints/<step>` holds the items `params`, `ema` (where an average is kept)
and `optimizer`, unstacked trees of arrays, the latter two of trained parameters only;
`run`, JSON with the whole config, the class names of every head, package versions, the
`FORMAT` and a checksum of these; and `checksums`, JSON with one checksum per array.

All of orbax is here and in `run`, which saves and resumes.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict

from sparse_tube_vit.config import InvalidConfig, from_json
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.storage import UnreachableStorage, absolute, is_unavailable

#: Version of the checkpoint format. Newer versions are refused.
FORMAT = 1

#: Orbax's file of a step with its items and the time at which it was finished.
METADATA = "_CHECKPOINT_METADATA"

#: Orbax's file of a finished step in a bucket, written last.
COMMITTED = "commit_success.txt"

#: Advice at the end of reading errors, which `run.set_damaged_aside` removes.
ADVICE = " Copy it again, or take another one."

#: Where weights of image ViTs are accepted, for messages.
FOR_IMAGE_VITS = "predict, features, probe and --config.init.weights"


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


def step_numbers(names: Iterable[str]) -> list[int]:
    """Returns the steps among the names in a directory of checkpoints, in order."""
    return sorted(int(x) for x in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", x))


def latest_step(directory) -> int | None:
    """Returns the latest finished step of a directory of checkpoints, or None.

    Raises:
        DamagedCheckpoint: The metadata of a later one cannot be read.
    """
    if not directory.is_dir():
        return None
    for step in reversed(step_numbers(path.name for path in directory.iterdir())):
        if read_metadata(directory / str(step))[1]:
            return step
    return None


def check_whole(root) -> None:
    """Reads all of a step, and compares it with its checksums.

    Reads one item after the other into memory.

    Args:
        root: The step's directory, on a disk or at gs://.

    Raises:
        UnfinishedCheckpoint, ForeignCheckpoint, DamagedCheckpoint, NewerCheckpoint,
        InvalidConfig: It is not whole, or not of this version.
        UnreachableStorage: A part of it is not given.
    """
    check_finished(root, root, ("optimizer",))
    restore_description(root)
    checksums = restore_checksums(root)
    for item in ("params", "ema", "optimizer"):
        if (root / item).exists():
            found = _checksums_of(item, _restore_arrays(root, item))
            compare_checksums(root, found, checksums)
            wanted = {x for x in checksums if x.startswith(f"{item}/")}
            if lost := sorted(wanted - set(found)):
                raise damaged(root, f"{', '.join(lost[:5])} is gone")


def check_finished(root, name, others: Iterable[str] = ()) -> None:
    """Raises unless a step is finished, of this package, and has all its items.

    Args:
        root: The step's directory.
        name: What errors call it.
        others: Items that it must have as well if it was saved with them.

    Raises:
        UnfinishedCheckpoint, ForeignCheckpoint, DamagedCheckpoint.
    """
    if not root.is_dir():
        raise damaged(name, "it is a file")
    names, (items, finished) = names_in(root), read_metadata(root, name)
    if not names:
        raise damaged(name, "it is empty")
    if not finished:
        raise UnfinishedCheckpoint(f"{name} is not written to its end.{ADVICE}")
    if not {"run", "params"} <= names | set(items):
        raise ForeignCheckpoint(
            f"{name} is not of sparse_tube_vit: it holds {', '.join(sorted(names))}, "
            "where run and params are needed."
        )
    optional = {"ema", "checksums", *others}
    lost = {"run", "params", *(optional & set(items))} - names
    if lost:
        raise damaged(name, f"{', '.join(sorted(lost))} is gone")


def names_in(directory) -> set[str]:
    """Returns the names of a directory's files and folders."""
    return {path.name for path in directory.iterdir()}


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
        run = _read_json(root / "run")
    return unsealed(run, root)


def sealed(description: Mapping) -> dict:
    """Returns JSON with a checksum of its other keys, for `unsealed`."""
    return {**description, "checksum": _digest(description)}


def _digest(description):
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def unsealed(run, where) -> dict:
    """Returns a stored description without its checksum, once all of it is checked.

    Args:
        run: JSON where `sealed` would have written a description.
        where: The path of the checkpoint or release, for errors.

    Raises:
        ForeignCheckpoint: It is no description of a run.
        NewerCheckpoint: It is of a newer format.
        DamagedCheckpoint: It is not what was saved, or its parts do not go together.
        InvalidConfig: This version does not know its config.
    """
    needed = ("config", "class_names", "versions")
    if not isinstance(run, dict) or any(
        not isinstance(run.get(k), dict) for k in needed
    ):
        raise ForeignCheckpoint(
            f"{where} is not of sparse_tube_vit: it does not say its "
            f"{', '.join(needed)}. An image ViT's weights are for {FOR_IMAGE_VITS}."
        )
    if type(number := run.get("format")) is not int:
        raise damaged(where, f"its format is {number!r}, no number")
    if number > FORMAT:
        version = run["versions"].get("sparse_tube_vit", "a newer one")
        raise NewerCheckpoint(
            f"{where} has format {number}, of sparse_tube_vit {version}; this version "
            f"reads formats up to {FORMAT}. Upgrade sparse_tube_vit."
        )
    checksum = run.get("checksum")  # older ones have none
    run = {key: value for key, value in run.items() if key != "checksum"}
    if checksum not in (None, _digest(run)):
        raise damaged(where, "its config or class names are not what was saved")
    try:
        config = from_json(run["config"])
    except InvalidConfig as error:
        raise InvalidConfig(f"{where}: {error}") from error
    for head, names in run["class_names"].items():
        if not (isinstance(names, list) and names and all(map(_is_text, names))):
            raise damaged(where, f"the classes of head {head!r} are no list of names")
    sources = (*config.streams.values(), *config.evaluations.values())
    used = {source.head for source in sources} | set(config.init.keep_heads)
    if lost := sorted(used - set(run["class_names"])):
        raise damaged(where, f"the class names of head {', '.join(lost)} are gone")
    return run


def _is_text(name):
    """Returns whether this is text for UTF-8: JSON may have half a character."""
    return isinstance(name, str) and name == name.encode(errors="replace").decode()


@contextlib.contextmanager
def reading(path):
    """Turns errors that libraries raise while reading `path` into named ones.

    Errors of jax (out of memory, a lost host) and named errors pass through.

    Raises:
        UnreachableStorage: A file exists, but cannot be fetched: a retry may succeed.
        DamagedCheckpoint: It is absent, or not what was written.
    """
    try:
        yield
    except (TubeViTError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # each reader has its own for damaged files
        if is_unavailable(error):
            line = first_line(error)
            raise UnreachableStorage(f"{path} cannot be read: {line}") from error
        raise damaged(path, first_line(error)) from error


def first_line(error):
    if isinstance(error, KeyError):
        return f"It lacks {error}."
    line, *_ = str(error).strip().splitlines() or [type(error).__name__]
    line = re.sub(r" \[(os_error_code|tensorstore_spec)=.*", "", line).rstrip(".")
    # tensorstore's messages begin with the operation and end with the cause.
    return f"{line[:100]} ... {line[-200:]}." if len(line) > 300 else f"{line}."


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
    params, checksums = {}, restore_checksums(root)
    for item in ("ema", "params") if ema else ("params",):
        if (root / item).exists():  # frozen parameters have no average
            arrays = _restore_arrays(root, item, exclude=params)
            compare_checksums(root, _checksums_of(item, arrays), checksums)
            params |= arrays
    return unflatten_dict(params, sep="/")


def restore_checksums(root) -> dict[str, int]:
    """Returns the checksums of a step's arrays by path."""
    path = root / "checksums"
    if not path.exists():
        raise damaged(root, "its checksums are gone")
    with reading(path):
        return dict(_read_json(path))


def damaged(name, why: str) -> DamagedCheckpoint:
    """Returns the error of a damaged checkpoint or release."""
    return DamagedCheckpoint(f"{name} is damaged: {why.rstrip('.')}.{ADVICE}")


def compare_checksums(root, found, saved):
    """Raises DamagedCheckpoint if checksums of arrays are not those that were saved."""
    for name, checksum in found.items():
        if saved.get(name) != checksum:
            raise damaged(root, f"{name} is not what was saved")


def _checksums_of(item, arrays):
    """Returns the checksums of arrays in numpy, by the paths that were saved."""
    return {f"{item}/{name}": int(_checksum(x, np)) for name, x in arrays.items()}


def checksums_of_items(items):
    """Returns the checksum of every array of the items by path."""
    return {k: int(x) for k, x in _by_path(jax.device_get(_sums(items))).items()}


@jax.jit  # compiled for the first checkpoint of a run, not for each
def _sums(items):
    return jax.tree.map(lambda x: _checksum(x, jnp), items)


def _checksum(x, xp):
    """Returns the sum of an array's bits as integers, without moving its shards."""
    return x.view(f"uint{8 * x.dtype.itemsize}").sum(dtype=xp.uint32)


def _orbax():
    """Returns orbax's module: a fifth of all imports, which releases do not need."""
    import orbax.checkpoint

    return orbax.checkpoint


def _reader(handler):
    """Returns a checkpointer that reads on this host, without waiting for the others.

    Args:
        handler: The class of a handler.
    """
    ocp = _orbax()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    return ocp.Checkpointer(
        handler(multiprocessing_options=alone), multiprocessing_options=alone
    )


def _read_json(path):
    return _reader(_orbax().JsonCheckpointHandler).restore(path)


def _restore_arrays(root, item, exclude=()):
    """Returns an item's arrays by path, in numpy, except those of `exclude`."""
    ocp = _orbax()
    checkpointer, path = _reader(ocp.PyTreeCheckpointHandler), root / item
    with reading(path):
        if not (path / "_METADATA").exists():
            raise damaged(path, "its _METADATA is gone")
        metadata = checkpointer.handler.metadata(path)
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata.tree)
        if exclude:  # of parameters, which are nested dicts
            arrays = _by_path(target)
            kept = {name: x for name, x in arrays.items() if name not in exclude}
            target = unflatten_dict(kept, sep="/")
        if not jax.tree.leaves(target):
            return {}
        restore = ocp.args.PyTreeRestore(
            target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        return _by_path(checkpointer.restore(path, restore))


def _by_path(tree):
    """Returns the leaves of a tree by their paths, joined by slashes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree.leaves_with_path(tree)
    }
