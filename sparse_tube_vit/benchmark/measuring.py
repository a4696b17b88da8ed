"""Measures jobs one after the other, each in a process of its own, as time allows.

No process holds memory that another needs. Jobs are measured in turns, round after
round, so that a change of the device's clock affects all alike. The most important come
first; those without time are named.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sparse_tube_vit.benchmark.implementations import CLASSES, IMPLEMENTATIONS
from sparse_tube_vit.benchmark.jax_steps import flops_per_clip
from sparse_tube_vit.benchmark.process import Job
from sparse_tube_vit.config.flags import positive
from sparse_tube_vit.distributed.cpu import usable_cores
from sparse_tube_vit.distributed.devices import has_gpu, peak_flops, remedy
from sparse_tube_vit.errors import TubeViTError, UnwritableOutput
from sparse_tube_vit.models.variants import VARIANTS
from sparse_tube_vit.storage import write_whole

#: Seconds: no job starts in the last `_LAST_START` before the `_RESERVE` at the end.
_LAST_START, _RESERVE = 12, 4

GIB = 2**30


class NoGpu(TubeViTError, RuntimeError):
    """A GPU is there, but jax computes on the CPU, which nobody asked for."""


class NothingMeasured(TubeViTError, RuntimeError):
    """Every job failed, or there was no time for any."""


def add_arguments(
    command, implementations: Sequence[str], out: str, **defaults
) -> None:
    """Adds the arguments of every command that measures.

    Args:
        command: The command's parser.
        implementations: Names of those to choose from, all by default.
        out: Default folder of the results.
        **defaults: Of the arguments dtype, compile, minutes, seconds and rounds.
    """
    add = command.add_argument
    add("--size", type=positive, default=224, help="pixels")
    add("--dtype", choices=("bfloat16", "float32"))
    add("--compile", action=argparse.BooleanOptionalAction, help="PyTorch's models")
    names = [*implementations]
    add("--implementations", nargs="+", choices=names, default=names)
    add("--minutes", type=float, help="for all of it")
    add("--seconds", type=float, help="a row is measured")
    add("--rounds", type=positive, help="at most, as time allows")
    add("--since", type=float, help="time of the clock, in seconds, when they began")
    add("--peak", type=float, help="TFLOP/s of the device, for MFU, if not known")
    add("--out", type=Path, default=Path(out), help="folder of the results")
    add("--cache", type=Path, default=Path("build/benchmark"), help="of programs")
    command.set_defaults(**defaults)


def job_flops(job: Job) -> int:
    """Returns the FLOPs of a job for one clip, and one image if joint, by formula."""
    forward_flops = IMPLEMENTATIONS[job.implementation].forward_flops
    if forward_flops is None:
        return flops_per_clip(job)
    sizes, patches = VARIANTS[job.variant], (job.size // 16) ** 2
    # timm's model has logits for every frame.
    heads = job.frames if job.implementation == "timm" else 1
    head = heads * 2 * sizes["width"] * CLASSES["videos"]
    forward = forward_flops(sizes, job.frames, patches) + head
    return forward * (3 if job.direction == "train" else 1)


class Process:
    """A process that measures one job, with its log in a file.

    It imports its libraries as soon as it is made, before it gets a job: that takes
    seconds, and no memory of the GPU.
    """

    def __init__(self, implementation: str, log: Path, env: dict[str, str]):
        self.log = log
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "sparse_tube_vit.benchmark.process"),
                    implementation,
                ],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # it may start compilers of its own
            )

    def lines(self, job: Job, seconds: float) -> Iterator[dict]:
        """Yields the lines of a job; {"late": True} where it is ended after seconds."""
        late = threading.Event()

        def end():
            late.set()
            self.end()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended at its imports
                self._process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
                self._process.stdin.close()
            for line in self._process.stdout:
                yield json.loads(line)  # whole: a line is written at once
            code = self._process.wait()
            if late.is_set():
                yield {"late": True}
            elif code:
                yield {"failed": f"ended with {code}: {_last_line(self.log)}"}
        finally:
            timer.cancel()
            self.end()

    def end(self) -> None:
        """Ends the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _last_line(file):
    lines = file.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no message"


def environment(cache: Path) -> dict[str, str]:
    """Returns the environment of the processes.

    One GPU, almost all of its memory for jax, which is alone on it, and a folder for
    the compiled programs of all libraries. Variables that are set already are kept.
    """
    env, root = dict(os.environ), str(Path(__file__).parents[2])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    defaults = {
        "CUDA_VISIBLE_DEVICES": "0",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in env:  # jax refuses both
        defaults["XLA_CLIENT_MEM_FRACTION"] = "0.92"
    return defaults | env


class Results:
    """Rows and everything else of a run, in a JSON file that is complete at any time.

    Args:
        file: Where it is written.
        peak: TFLOP/s of the device at its peak; None: those that are known.

    Attributes:
        devices: What every implementation tells of its device.
        left_out: Names of rows that there was no time for.
        failed: Messages by the name of a row.
        not_installed: Packages by the name of an implementation.
    """

    def __init__(self, file: Path, peak: float | None):
        self.file, self.peak, self._rows = file, peak and 1e12 * peak, {}
        self.devices, self.left_out, self.failed, self.not_installed = {}, [], {}, {}
        self.started, self.gpu = time.time(), [nvidia_smi()]

    @property
    def rows(self) -> list[dict]:
        """Rows in the order in which they were measured first."""
        return [*self._rows.values()]

    def add(self, job: Job, measured: dict) -> dict:
        """Adds a round of a row, and returns the row."""
        batch, kind = measured["batch"], self.devices[job.implementation]["kind"]
        key = (job.name, measured["which"], batch)
        flops = job_flops(job) * batch
        row = self._rows.setdefault(
            key,
            {
                "implementation": job.implementation,
                "variant": job.variant,
                "direction": job.direction,
                "clip": list(job.clip),
                "streams": job.streams,
                "dtype": job.dtype,
                "which": measured["which"],
                "batch": batch,
                "flops": flops,
                "memory_bytes": measured["memory_bytes"],
                "compile_seconds": measured["compile_seconds"],
                "notes": measured["notes"],
                "rounds": [],
            },
        )
        names = ("step_seconds", "least_seconds", "greatest_seconds", "steps")
        row["rounds"].append({name: measured[name] for name in names})
        seconds = statistics.median(x["step_seconds"] for x in row["rounds"])
        peak = self.peak or peak_flops(kind)
        row["step_seconds"] = seconds
        row["clips_per_second"] = batch / seconds
        row["flops_per_second"] = flops / seconds
        row["mfu"] = flops / seconds / peak if peak else None
        return row

    def write(self, args) -> None:
        """Writes the file anew, whole or not at all."""
        arguments = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()
            if name != "run"
        }
        written = {
            "seconds": time.time() - self.started,
            "python": sys.version.split()[0],
            "processor": processor(),
            "cores": usable_cores(),
            "gpu": self.gpu,
            "devices": self.devices,
            "arguments": arguments,
            "environment": {
                name: os.environ[name]
                for name in ("XLA_FLAGS", "LD_LIBRARY_PATH", "JAX_PLATFORMS")
                if name in os.environ
            },
            "rows": self.rows,
            "left_out": self.left_out,
            "failed": self.failed,
            "not_installed": self.not_installed,
        }
        write_whole(self.file, json.dumps(written, indent=1).encode())


def processor() -> str:
    """Returns the name of the CPU, or at least of its architecture."""
    file = Path("/proc/cpuinfo")
    found = file.exists() and re.search(r"model name\s*: (.*)", file.read_text())
    return found[1] if found else os.uname().machine


def nvidia_smi() -> dict[str, str] | None:
    """Returns what the driver tells of the first GPU, or None without a driver."""
    if not shutil.which("nvidia-smi"):
        return None
    names = (
        "name,driver_version,memory.total,memory.used,power.limit,power.draw,"
        "clocks.sm,clocks.max.sm,temperature.gpu"
    )
    command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return None
    first = told.stdout.strip().partition("\n")[0]
    return dict(zip(names.split(","), first.split(", "), strict=False))


def measure_jobs(
    jobs: list[Job],
    args,
    results: Results,
    table: Callable[[list[dict]], list[list[str]]],
    closing: Callable[[Results], str] | None = None,
) -> None:
    """Measures all jobs that there is time for; prints a table, writes files.

    Args:
        jobs: The jobs, the most important first.
        args: Arguments of the command.
        results: Takes the rows, and is written with table.md beside it.
        table: Maps rows to the cells of the table, its heads first.
        closing: Maps results to a last line that is printed, or to none.

    Raises:
        NoGpu: jax does not use the GPU that is here.
        NothingMeasured: There is no row.
        UnwritableOutput: A folder cannot be made.
    """
    ends = (args.since or time.time()) + 60 * args.minutes - _RESERVE
    for name, folder in (("out", args.out / "logs"), ("cache", args.cache)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnwritableOutput(f"--{name}: {folder}: {error.strerror}") from error
    env = environment(args.cache.resolve())

    def make_process(job):
        log = args.out / "logs" / f"{job.name}.log"
        # Others import our tubes, but must not take the GPU's memory for jax.
        in_jax = IMPLEMENTATIONS[job.implementation].framework == "jax"
        others = {} if in_jax else {"JAX_PLATFORMS": "cpu"}
        return Process(job.implementation, log, env | others)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception
    for name in dict.fromkeys(job.implementation for job in jobs):
        packages = IMPLEMENTATIONS[name].packages
        absent = [x for x in packages if not importlib.util.find_spec(x)]
        if absent:
            results.not_installed[name] = absent
            print(_not_installed(name, absent), flush=True)
    jobs = [job for job in jobs if job.implementation not in results.not_installed]
    try:
        take_turns(jobs, args, ends, results, make_process)
    finally:
        results.gpu.append(nvidia_smi())
        results.write(args)
        text = markdown(table(results.rows))
        (args.out / "table.md").write_text(text + "\n")
        print(f"\n{text}\n")
        _report(results)
        if closing and (line := closing(results)):
            print(line)
    if not results.rows:
        raise NothingMeasured(
            f"Nothing was measured; {args.out / 'logs'} has what the processes wrote."
        )


def take_turns(
    jobs: list[Job], args, ends: float, results: Results, make_process: Callable
) -> None:
    """Measures jobs, round after round, until the time ends.

    Args:
        jobs: The jobs, the most important first.
        args: Arguments of the command.
        ends: Time of the clock, in seconds, when all of it ends.
        results: Takes the rows.
        make_process: Maps a job to the `Process` that will measure it.
    """
    largest, took, platform = {}, {}, None
    turns = [(i, job) for i in range(args.rounds) for job in jobs]
    waiting = None  # name of the next turn's job, and its process, while it imports

    def start(job):
        return job.name, make_process(job)

    try:
        for i, (again, job) in enumerate(turns):
            left, name = ends - time.time(), job.name
            if name in results.failed:
                continue
            if left < max(_LAST_START, 1.1 * took.get(name, 0)):
                if not again:
                    results.left_out.append(name)
                continue
            if not waiting or waiting[0] != name:
                if waiting:
                    waiting[1].end()
                waiting = start(job)
            process, waiting = waiting[1], None
            # PyTorch's model has the batch of ours, and a forward pass that of a step.
            shape = (job.variant, job.clip, job.streams)
            known = largest.get(name)
            if known is None and job.implementation in ("ours", "pytorch"):
                known = largest.get(shape)
            if args.largest is None:
                job = dataclasses.replace(job, largest=known)
            job = dataclasses.replace(job, platform=platform)
            began = time.time()
            for line in process.lines(job, left):
                if device := line.get("device"):
                    results.devices[job.implementation] = device
                    platform = platform or device["platform"]
                    _check_platform(job, device["platform"])
                    # On a CPU its imports would take time from what is measured.
                    if platform != "cpu" and i + 1 < len(turns):
                        waiting = start(turns[i + 1][1])
                elif row := line.get("row"):
                    which = row["which"]
                    if "failed" in row:
                        results.failed[f"{name} {which}"] = row["failed"]
                        largest[name] = 0
                        continue
                    if which == "largest":
                        largest[name] = row["batch"]
                        if job.implementation == "ours":
                            largest.setdefault(shape, row["batch"])
                    notes = "".join(f"  ({note})" for note in row["notes"])
                    row = results.add(job, row)
                    results.write(args)
                    print(
                        f"{time.time() - results.started:4.0f} s",
                        f"{name}, {row['batch']} clips:",
                        f"{1e3 * row['step_seconds']:.4g} ms,",
                        f"{row['clips_per_second']:.3g} clips/s{notes}",
                        flush=True,
                    )
                elif line.get("late"):
                    if not again:
                        results.left_out.append(f"{name} (no time to end it)")
                else:
                    results.failed[name] = line["failed"]
                    print(f"{name} failed: {line['failed']}", flush=True)
            took[name] = time.time() - began
    finally:
        if waiting:
            waiting[1].end()


def _check_platform(job, platform):
    """Refuses the CPU where a GPU is, unless the CPU was asked for."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    in_jax = IMPLEMENTATIONS[job.implementation].framework == "jax"
    if in_jax and platform == "cpu" and has_gpu() and not asked:
        raise NoGpu(
            f"An NVIDIA GPU is here, but jax runs on the CPU. {remedy()} "
            "JAX_PLATFORMS=cpu measures the CPU."
        )


def markdown(cells: list[list[str]]) -> str:
    """Returns a table in Markdown.

    Args:
        cells: Rows of cells, the heads first.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, each, widths)) + " |" for each in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _not_installed(name, absent):
    source = IMPLEMENTATIONS[name].source
    where = f" ({source})" if source else ""
    return f"{name}: left out, not installed: {', '.join(absent)}{where}"


def _report(results):
    """Prints all that a reader must know beside the table."""
    for name, device in results.devices.items():
        versions = ", ".join(f"{k} {v}" for k, v in device["versions"].items())
        print(f"{name}: {device['kind']}, {versions}")
        peak = results.peak or peak_flops(device["kind"])
        if name == "ours" and peak:
            print(f"MFU is of {peak / 1e12:.0f} TFLOP/s, by FLOPs of the formula.")
    for row in results.rows:
        for note in row["notes"]:
            clip = "x".join(map(str, row["clip"]))
            print(f"{row['implementation']}, {row['direction']}, {clip}: {note}")
    for name, message in results.failed.items():
        print(f"{name}: failed: {message}")
    for name, absent in results.not_installed.items():
        print(_not_installed(name, absent))
    if results.left_out:
        print(f"Left out, no time: {', '.join(results.left_out)}.")
    print(f"{time.time() - results.started:.0f} s; {results.file}")
