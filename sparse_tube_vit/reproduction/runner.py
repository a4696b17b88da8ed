"""Carries out runs one after another, each by the commands that a user would give."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from sparse_tube_vit import storage
from sparse_tube_vit.config import files
from sparse_tube_vit.errors import TubeViTError, UnwritableOutput
from sparse_tube_vit.log import log
from sparse_tube_vit.reproduction.runs import (
    Results,
    Run,
    UnreadableResults,
    name_of,
    read_result,
)

#: What is counted where there is no other device.
CORE = "CPU core"


class FailedRun(TubeViTError, RuntimeError):
    """A command of a run that ended with an error."""


class ChangedCode(TubeViTError, RuntimeError):
    """The code changed since the runs were planned."""


@dataclasses.dataclass(frozen=True)
class _Setting:
    """Arguments of `carry_out` and the device, which all runs share."""

    workdirs: Path
    data_dir: str
    weights: str
    device: str
    code: bytes


def carry_out(
    runs: Sequence[Run],
    results: Results,
    workdirs: Path,
    data_dir: str,
    weights: str,
    finished: Callable[[], None] = lambda: None,
    code: bytes = b"",
) -> list[TubeViTError]:
    """Carries out runs, keeps the result of each, and shows the time that is left.

    A run that was interrupted goes on from its latest checkpoint. One that fails does
    not stop those that do not need it. One that another runner carries out is left to
    it; those that start from it come last, and wait for it.

    Args:
        runs: The runs, those that others start from before them.
        results: Where results are kept.
        workdirs: Folder of the work directories.
        data_dir: Folder of the prepared data sets.
        weights: Weights of an image ViT.
        finished: Called after each run.
        code: Of `digest_of_code`, when the runs were planned; default: now.

    Returns:
        The errors of runs that failed.

    Raises:
        ChangedCode: A command would begin with other code than planned the run.
    """
    device, code = _device() if runs else "", code or digest_of_code()
    setting = _Setting(workdirs, data_dir, weights, device, code)
    failed: dict[str, TubeViTError] = {}
    text = "{desc} {bar} {n:.0f}/{total:.0f} min"
    shown = sys.stderr.isatty()  # in a log, a line for every run is better
    # Predictions are of other machines or loads; `pace` corrects them by the runs that
    # are finished here.
    minutes = {run.folder: results.minutes(run) for run in runs}
    left, begun, took, predicted = list(runs), time.monotonic(), 0.0, 0.0
    with tqdm(total=1, bar_format=text, disable=not shown) as bar:
        while left:
            # Those whose model another runner is at come last.
            busy = (
                run.after and _is_locked(workdirs / run.after.folder) for run in left
            )
            run = left.pop(
                next((i for i, is_busy in enumerate(busy) if not is_busy), 0)
            )
            spent = (time.monotonic() - begun) / 60
            pace = took / predicted if took else 1.0
            expected = minutes[run.folder]
            rest = pace * (expected + sum(minutes[x.folder] for x in left))
            bar.total = spent + rest
            bar.update(spent - bar.n)
            about = f"{len(runs) - len(left)} of {len(runs)} runs, {rest:.0f} min left"
            bar.set_description_str(f"{run.folder}: {about}", refresh=False)
            if not shown:
                log.info("%s: %s", run.folder, about)
            try:
                if run.after:
                    _wait_for(run, failed, workdirs)
                starts = {other.after.folder for other in left if other.after}
                needed = run.folder in starts
                advancing = functools.partial(_advancing, bar, pace * expected)
                if measured := _carry_out(run, results, setting, needed, advancing):
                    took, predicted = took + measured, predicted + expected
            except (FailedRun, UnreadableResults) as error:  # others may do
                failed[run.folder] = error
                log.error("%s", error)
            finished()
    return [*failed.values()]


def digest_of_code() -> bytes:
    """Returns a digest of what a command of a run would read: package and configs."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for folder in (package, *filter(None, [files.SHIPPED])):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.digest()


def _commit():
    """Returns the commit of the clone, with "-dirty" if changed; "" in no clone.

    What runs write does not count as a change.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*arguments):
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        found = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
        return found.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = git("describe", "--always", "--exclude=*")
        paths = ("--", ".", ":(exclude)docs/reproduction*")
        changed = git("status", "--porcelain", "--untracked-files=no", *paths)
        return f"{commit}-dirty" if changed else commit
    return ""


def _is_locked(folder):
    """Returns whether another process has locked a folder, which may be absent."""
    if not folder.is_dir():
        return False
    with storage.locked(folder, wait_seconds=0) as free:
        return not free


def _wait_until_free(folder, why):
    """Waits until no other process has locked a folder; logs that it does."""
    if _is_locked(folder):
        log.info("%s", why)
        with storage.locked(folder):
            pass


def _wait_for(run, failed, workdirs):
    """Waits for the run that another needs; raises FailedRun if it is not done."""
    before = run.after
    if before.folder in failed:
        raise FailedRun(f"{run.folder}: {before.folder} failed before.")
    why = f"{run.folder} waits for {before.folder} of another runner"
    _wait_until_free(workdirs / before.folder, why)
    if not read_result(before, before.workdir(workdirs)):
        raise FailedRun(
            f"{run.folder}: {before.folder} is not done. Give the same command again."
        )


def _carry_out(run, results, setting, needed, advancing):
    """Carries out a run, unless another runner does; returns its minutes if known.

    Args:
        run, results, setting: The run, where its result is kept, and what all have.
        needed: Whether others start from its model.
        advancing: Returns a function that advances the bar from then on.
    """
    folder = setting.workdirs / run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableOutput(f"--runs {folder} cannot be made: {error}") from error
    # Others lock it for a moment to see whether it is free, see `_is_locked`.
    with storage.locked(folder, wait_seconds=1) as locked:
        if locked:
            return _carry_out_locked(run, results, setting, needed, advancing)
    log.info("%s is left to another runner", run.folder)
    return None


def _carry_out_locked(run, results, setting, needed, advancing):
    workdirs, weights = setting.workdirs, setting.weights
    folder, workdir = workdirs / run.folder, run.workdir(workdirs)
    # One goes on where its runner was killed outright.
    _wait_until_free(workdir, f"{run.folder} waits for the training in {workdir}")
    results.reload(run.task)
    stored = results.get(run)
    if stored and (read_result(run, workdir) or not needed):
        return None  # another runner was quicker
    resumed = (workdir / "checkpoints").is_dir()
    advance = advancing()
    _check_unchanged(setting.code)  # now that it has waited
    commits = folder / f"{run.digest}_commits"
    _note_commit(commits, resumed)
    with _counted(folder / f"{run.digest}_minutes", resumed):
        for command in run.commands(workdirs, setting.data_dir, weights):
            _check_unchanged(setting.code)
            if "sparse_tube_vit.scale_up" in command:
                if resumed:
                    continue  # the run has begun with it
                # It may be half written, or be of a run that did not begin.
                created = run.created(workdirs, weights)
                shutil.rmtree(created, ignore_errors=True)
            if CORE in setting.device and "sparse_tube_vit.train" in command:
                # Decoding beside the step takes 25% less time on two cores.
                command = [*command, "--config.loader.workers=1"]
            _run(command, folder / "log.txt", advance, run)
    minutes = float((folder / f"{run.digest}_minutes").read_text())
    evaluations = read_result(run, workdir)
    # All of them, as rows of other tables may share the run; but for those without a
    # data set, which fine-tuning leaves out.
    expected = [name for name, e in run.config.evaluations.items() if e.dataset]
    if missing := [name for name in expected if name not in evaluations]:
        raise FailedRun(
            f"{run.folder}: {workdir} has no evaluation {', '.join(missing)} of step "
            f"{run.config.total_steps}."
        )
    minutes = None if math.isnan(minutes) else round(minutes, 2)
    if stored:
        return minutes  # the model alone was missing
    results.add(
        run,
        {
            "evaluations": evaluations,
            "steps": run.config.total_steps,
            "minutes": minutes,
            "device": setting.device,
            "date": datetime.date.today().isoformat(),
            "jax": metadata.version("jax"),
            "commit": commits.read_text(),
            **({"weights": name_of(weights)} if run.takes_weights else {}),
        },
    )
    return minutes


def _note_commit(path, resumed):
    """Writes the commit to a file, after those in it if a run resumes."""
    before = path.read_text().split(", ") if resumed and path.exists() else []
    storage.write_whole(path, ", ".join(dict.fromkeys([*before, _commit()])).encode())


@contextlib.contextmanager
def _counted(path, resumed):
    """Writes the body's minutes to a file: added up on resume, NaN while it runs."""
    before = 0.0
    if resumed:
        before = math.nan
        with contextlib.suppress(OSError, ValueError):
            before = float(path.read_text())
    storage.write_whole(path, b"nan")
    start = time.monotonic()
    try:
        yield
    finally:
        minutes = before + (time.monotonic() - start) / 60
        storage.write_whole(path, str(minutes).encode())


def _check_unchanged(code):
    if digest_of_code() != code:
        raise ChangedCode(
            "The code has changed since this began, and a run is stored as one of the "
            "code that planned it. Give the same command again."
        )


def _run(command, log_file, advance, run):
    """Runs a command; whatever ends this process ends it first, so that it saves."""
    with storage.writing(log_file), open(log_file, "ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
    with open(log_file, "ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        while process.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            advance()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        lines = log_file.read_text(errors="replace").strip().splitlines()
        raise FailedRun(
            f"{run.folder} ended with code {process.returncode}: {lines[-1]} All of it "
            f"is in {log_file}."
        )


def _advancing(bar, most):
    """Returns a function that moves a bar on by the minutes since, at most so many."""
    before, start = bar.n, time.monotonic()

    def advance():
        bar.update(before + min((time.monotonic() - start) / 60, most) - bar.n)

    return advance


def _device():
    """Returns the devices in words, by a process of its own, which frees them again."""
    code = (
        "import jax; from sparse_tube_vit.distributed.cpu import usable_cores; "
        "d, n = jax.devices(), usable_cores(); "
        "print(f'{len(d)} x {d[0].device_kind}' if d[0].platform != 'cpu' "
        f"else f'{{n}} {CORE}' + 's' * (n > 1))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise FailedRun(f"jax finds no device: {found.stderr.strip()[-500:]}")
    return found.stdout.strip()
