"""Checkpoints of a run: saving them, and resuming from the latest that is whole."""

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sparse_tube_vit import __version__
from sparse_tube_vit.checkpoints.step import (
    ADVICE,
    COMMITTED,
    FORMAT,
    DamagedCheckpoint,
    ForeignCheckpoint,
    UnfinishedCheckpoint,
    check_whole,
    checksums_of_items,
    compare_checksums,
    first_line,
    latest_step,
    read_metadata,
    reading,
    restore_checksums,
    restore_description,
    sealed,
    step_numbers,
)
from sparse_tube_vit.checkpoints.workdir import (
    UnusableWorkdir,
    check_workdir,
    make_workdir,
)
from sparse_tube_vit.config import ConfigDict, differences, from_json
from sparse_tube_vit.distributed import hosts
from sparse_tube_vit.errors import TubeViTError, UnwritableOutput
from sparse_tube_vit.log import log
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.storage import absolute, entries, files_below, is_remote

#: Arrays are sliced among replicas where a slice is this large at least.
_MIN_SLICE_BYTES = 64 * 1024

#: Packages beside our own that a run's result depends on.
_PACKAGES = (
    *("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("grain", "av", "opencv-python-headless"),
)

#: Keys that may change on resume. They do not affect the result, but `mesh` and
#: `optimizer.accumulate_steps` what is drawn (dropout, the pairs of mixup), and the
#: limits of `loader` what counts as undecodable.
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
    "peak_flops",
    "profile_steps",
)


class OtherRun(TubeViTError, ValueError):
    """A work directory of a run with another config or other classes."""


def describe_run(
    config: ConfigDict,
    class_names: Mapping[str, tuple[str, ...]],
    data: Mapping[str, Mapping] | None = None,
) -> dict:
    """Returns a run's config, class names, data and package versions as JSON types.

    Args:
        config: The config of the run.
        class_names: The class names of every head.
        data: What its streams read, `Split.fingerprint` by name; None: not told.
    """
    versions = {"sparse_tube_vit": __version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "format": FORMAT,
        "config": json.loads(config.to_json()),
        "class_names": {head: list(names) for head, names in class_names.items()},
        "data": dict(data or {}),
        "versions": versions,
    }


class Checkpoints:
    """The checkpoints of a run in training, written in the background.

    Args:
        workdir: The run's work directory, local or gs://.
        keep: Number of latest checkpoints to keep.
        run: Description of the run by `describe_run`.

    Raises:
        UnusableWorkdir: As `workdir.check_workdir`; or hosts see other checkpoints in
            it.
    """

    def __init__(self, workdir, keep: int, run: dict):
        check_workdir(workdir)
        self.directory = epath.Path(absolute(workdir)) / "checkpoints"
        self.run = run
        self.manager = _manager(self.directory, keep)
        if jax.process_count() > 1:
            self._check_same()

    @property
    def resumable(self) -> bool:
        """Whether the work directory has a checkpoint to resume from."""
        return latest_step(self.directory) is not None

    def resume(self, state):
        """Restores the latest checkpoint's state.

        `set_damaged_aside` comes first, so that the latest one is whole.

        Args:
            state: A `TrainState` of arrays, or of their shapes, dtypes and shardings.
                The restored arrays get the same shardings.

        Raises:
            OtherRun: The checkpoint has another config or other classes, or no
                optimizer state.
            DamagedCheckpoint: A part is missing, or differs from what was saved.
        """
        step = latest_step(self.directory)
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
            saved = restore_checksums(root)
        found = checksums_of_items({k: restored[k] for k in items})
        compare_checksums(root, found, saved)
        log.info("Resumed from step %d in %s", step, self.directory)
        return state.replace(
            step=jax.device_put(np.int32(step), state.step.sharding),
            params=restored["params"],
            optimizer=restored["optimizer"],
            ema=restored["ema"] if state.ema is not None else None,
        )

    def save(self, state) -> None:
        """Saves a `TrainState` in the background. Its arrays may be donated at once.

        The first checkpoint of a run is waited for and read back.

        Raises:
            UnwritableOutput: It, or the one before, cannot be written.
            UnusableWorkdir: The first one cannot be read back.
        """
        step, before = int(state.step), self.manager.all_steps()
        if step in before:
            return
        with _writing(self.directory):
            self.manager.save(step, args=_contents(self.run, _items(state)))
        if not before:
            self._check_first(step)

    def check_for_errors(self) -> None:
        """Raises UnwritableOutput if writing in the background has failed by now."""
        # The manager's own check misses what its thread has already met.
        if not self.manager.is_saving_in_progress():
            with _writing(self.directory):
                self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
            UnwritableOutput: The last checkpoint cannot be written.
        """
        with _writing(self.directory), contextlib.closing(self.manager):
            self.manager.wait_until_finished()

    def _check_same(self):
        """Checks that all hosts see the same steps: they would wait for each other."""
        seen = [latest_step(self.directory), *self.manager.all_steps()]
        if len(set(hosts.gather("checkpoints", json.dumps(seen)))) > 1:
            raise UnusableWorkdir(
                f"{self.directory} does not have the same checkpoints on all hosts: a "
                "network disk may show what has changed. Start again in some minutes."
            )

    def _check_first(self, step):
        with _writing(self.directory):
            self.manager.wait_until_finished()
        if jax.process_index() == 0:
            _read_back(self.directory, step)
        hosts.gather("read back", "")  # nobody goes on, or leaves, before

    def _check_run(self, saved):
        then, now = (_comparable(run) for run in (saved, self.run))
        changed = [
            f"  {key}: {before!r} then, {after!r} now"
            for section in ("config", "class_names")
            for key, before, after in differences(then[section], now[section])
            if section == "class_names"
            or not f"{key}.".startswith(tuple(f"{k}." for k in RESUMABLE_KEYS))
        ]
        if changed:
            raise OtherRun(
                f"{self.directory.parent} holds a run with other settings:\n"
                + "\n".join(changed)
                + "\nSet them as they were to resume, or choose another --workdir, "
                "with --config.init.weights to start from this run."
            )
        self._warn_of_versions(saved["versions"])
        if before := saved.get("data"):  # what other versions tell may differ
            changed = [
                f"  {key}: {then!r} then, {now!r} now"
                for key, then, now in differences(before, self.run["data"])
                if None not in (then, now)
            ]
            if changed:
                raise OtherRun(
                    f"{self.directory.parent} holds a run on other data, prepared "
                    "again since:\n" + "\n".join(changed) + "\nResumed, it could "
                    "repeat examples. Prepare the data as it was, or choose another "
                    "--workdir, with --config.init.weights to start from this run."
                )

    def _warn_of_versions(self, then):
        now = self.run["versions"]
        changed = [
            f"{package} {then[package]} then, {now[package]} now"
            for package in then.keys() & now.keys()
            if then[package] not in (now[package], "not installed")  # a source tree
        ]
        if changed and jax.process_index() == 0:
            log.warning(
                "Package versions changed since the last checkpoint, so the result may "
                "differ from that of an uninterrupted run: %s",
                "; ".join(sorted(changed)),
            )


def _comparable(run):
    """Returns a run's description with the defaults of absent keys filled in."""
    config = from_json(run["config"])
    if not isinstance(config.model.tubes, str):
        tubes = make_tubes(config.model.tubes)
        config.model.tubes = tuple(map(dataclasses.asdict, tubes))
    return run | {"config": json.loads(config.to_json())}


def save_params(workdir, params, run: dict) -> None:
    """Saves parameters as the checkpoint of step 0, for other runs to start from.

    Args:
        workdir: Work directory without checkpoints, local or gs://.
        params: All parameters of a model.
        run: Description of the model by `describe_run`.

    Raises:
        OtherRun: The work directory has checkpoints already.
        UnwritableOutput: It cannot be written.
        UnusableWorkdir: As `make_workdir`, or it cannot be read back.
    """
    make_workdir(epath.Path(workdir))
    directory = epath.Path(absolute(workdir)) / "checkpoints"
    with _writing(directory), _manager(directory) as manager:
        if manager.all_steps():
            raise OtherRun(
                f"{workdir} has checkpoints already. Choose another --workdir."
            )
        manager.save(0, args=_contents(run, {"params": params}))
    _read_back(directory, 0)


def _contents(run, items):
    """Returns what a checkpoint of a run holds, for orbax."""
    return ocp.args.Composite(
        run=ocp.args.JsonSave(sealed(run)),
        checksums=ocp.args.JsonSave(checksums_of_items(items)),
        **{name: ocp.args.StandardSave(x) for name, x in items.items()},
    )


def _read_back(directory, step):
    """Checks that a work directory gives back what is written to it."""
    try:
        check_whole(directory / str(step))
    except TubeViTError as error:
        raise UnusableWorkdir(
            f"--workdir {directory.parent} does not give back what is written to it: "
            f"{error}"
        ) from error


@contextlib.contextmanager
def _writing(directory):
    """Turns errors of libraries that write a checkpoint into UnwritableOutput."""
    try:
        yield
    except (TubeViTError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # orbax, tensorstore, tensorflow have their own
        raise UnwritableOutput(
            f"{directory} cannot be written: {first_line(error)} Checkpoints that were "
            "finished before are whole: once files can be written there, the same "
            "command goes on from the latest."
        ) from error


def _manager(directory, keep=None):
    # Replicas write a slice of an array each, cut by a program that is compiled for
    # every shape and replica: that pays for large arrays alone. orbax takes this for
    # the whole process; it writes no `array_metadatas`, which typed keys alone need.
    arrays = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES
    )
    ocp.type_handlers.register_type_handler(jax.Array, arrays, override=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    return ocp.CheckpointManager(directory, options=options)


def _items(state):
    items = {"params": state.params, "optimizer": state.optimizer}
    return items | ({"ema": state.ema} if state.ema is not None else {})


def set_damaged_aside(workdir) -> None:
    """Moves checkpoints newer than the latest whole one to `WORKDIR/damaged`.

    A run resumes from the latest one that is left. In a bucket it gets the file
    `COMMITTED` if it has none, without which orbax does not restore it. Called on one
    host.

    Args:
        workdir: The run's work directory, local or gs://.

    Raises:
        DamagedCheckpoint, UnfinishedCheckpoint, ForeignCheckpoint: None is whole; all
            stay where they are.
        NewerCheckpoint, InvalidConfig: A newer version wrote the latest one.
        UnreachableStorage: One cannot be fetched from storage; none is moved.
        UnusableWorkdir: They cannot be moved.
    """
    directory = epath.Path(absolute(workdir)) / "checkpoints"
    if not directory.is_dir():
        return
    problems = {}
    for step in reversed(step_numbers(path.name for path in directory.iterdir())):
        root = directory / str(step)
        try:
            check_whole(root)
            _mark_committed(root)
            break
        except (UnfinishedCheckpoint, ForeignCheckpoint, DamagedCheckpoint) as error:
            # In a bucket, orbax writes an unfinished one again in its place.
            if not (is_remote(root) and isinstance(error, UnfinishedCheckpoint)):
                problems[root] = type(error)(str(error).removesuffix(ADVICE))
    else:
        for error in problems.values():  # the newest
            raise type(error)(
                f"{error} No other checkpoint in {directory} is whole: restore one "
                "from a copy, or move that directory away to train from the start."
            )
        return
    for root, error in problems.items():
        aside = _unused(directory.parent / "damaged" / root.name)
        try:
            _move(root, aside)
        except Exception as problem:  # tensorflow and fsspec have their own
            raise UnusableWorkdir(
                f"{error} It cannot be moved to {aside}, to go on from step {step}: "
                f"{first_line(problem)}"
            ) from problem
        log.error("%s It is moved to %s; the run goes on from %d.", error, aside, step)


def _mark_committed(root):
    """Writes `COMMITTED` to a whole checkpoint of a bucket.

    It is the last that orbax writes: a run that was killed just before lacks it.
    """
    if is_remote(root) and not (root / COMMITTED).exists():
        with _writing(root):
            (root / COMMITTED).write_text("Found to be whole by its checksums.\n")


def remove_unfinished(workdir) -> None:
    """Removes checkpoints that a killed run did not write to their end.

    Called on one host, when no other training uses the work directory.

    Args:
        workdir: The run's work directory, local or gs://.
    """
    for path in entries(epath.Path(absolute(workdir)) / "checkpoints"):
        try:
            if _is_unfinished(path):
                path.rmtree()
                log.info("Removed %s, which was not written to its end", path)
        except Exception as error:  # tensorflow and fsspec have their own
            log.warning("%s stays as it is: %s", path, first_line(error))


def _is_unfinished(path):
    """Returns whether a path is what orbax leaves of a checkpoint it was to write."""
    if is_remote(path) and step_numbers([path.name]):
        return not read_metadata(path)[1]
    return ".orbax-checkpoint-tmp" in path.name


def _move(root, aside):
    aside.parent.mkdir(exist_ok=True)
    if not is_remote(root):
        root.rename(aside)
        return
    for file in files_below(root)[0]:  # a bucket has files only, no folders to rename
        target = aside / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.copy(target)
    root.rmtree()


def _unused(path):
    """Returns a path that nothing has, this one or with a number appended."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free
