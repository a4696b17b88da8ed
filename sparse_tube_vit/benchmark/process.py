"""A process of `benchmark gpu` and `peers`, which measures one implementation alone.

Reads a job as a line of JSON, writes lines of JSON: the device, then a row for every
batch that was measured.
"""

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import os
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from sparse_tube_vit.benchmark.implementations import IMPLEMENTATIONS


@dataclasses.dataclass(frozen=True)
class Job:
    """One model and input to measure, at one or two batch sizes.

    Attributes:
        implementation: One of `IMPLEMENTATIONS`.
        variant: Size of the model, one of `VARIANTS`.
        frames: Frames of a clip.
        size: Height and width of a frame in pixels.
        streams: "video", or "joint" with as many images as clips in a batch.
        direction: "train" for a whole training step, "forward" for logits alone.
        small: Clips of the small batch.
        largest: Clips of the large batch; None: as many as fit into memory; 0: none.
        dtype: Dtype of the computation.
        options: Options of our encoder, such as scan and remat.
        compiled: Whether PyTorch's model goes through `torch.compile`.
        platform: "gpu" or "cpu"; None: the GPU if there is one.
        seconds: Time that a row is measured for.
        trace: Folder for traces of three steps of every row; empty: none.
    """

    implementation: str
    variant: str
    frames: int
    size: int
    streams: str
    direction: str
    small: int
    largest: int | None
    dtype: str
    options: dict
    compiled: bool = True
    platform: str | None = None
    seconds: float = 3.0
    trace: str = ""

    @property
    def clip(self) -> tuple[int, int, int]:
        """(T, H, W) of a clip."""
        return (self.frames, self.size, self.size)

    @property
    def name(self) -> str:
        """Name of the job, of the characters of a file's name."""
        clip = "x".join(map(str, self.clip))
        parts = (self.implementation, self.variant, clip, self.streams, self.direction)
        return "_".join(parts)


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step at one batch size.

    Attributes:
        run: Runs a number of steps, one after the other, and waits for the last.
        memory: Returns the bytes of the device that a step needs at most, or None. Not
            given for the CPU, where they are what the process holds beside its
            libraries.
        notes: What a reader of the row must know.
    """

    run: Callable[[int], None]
    memory: Callable[[], int | None] | None = None
    notes: tuple[str, ...] = ()


class PeakMemory:
    """The most main memory that this process holds from now on, on Linux."""

    def __init__(self):
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):  # what compiling left
            ctypes.CDLL(None).malloc_trim(0)
        self._cleared = False
        with contextlib.suppress(OSError):  # not Linux, or not allowed
            Path("/proc/self/clear_refs").write_text("5")
            self._cleared = True

    def read(self) -> int | None:
        """Returns bytes; None where they are not known."""
        status = Path("/proc/self/status").read_text() if self._cleared else ""
        found = re.search(r"VmHWM:\s*(\d+) kB", status)
        return 1024 * int(found[1]) if found else None


_BLOCKS = 6


def measure_step(step: Step, seconds: float, imported: int | None) -> dict:
    """Returns a step's seconds: the median, least and greatest of several blocks.

    Args:
        step: The step.
        seconds: Time that it is measured for.
        imported: Bytes of main memory that the libraries hold, or None.
    """

    def block(steps):
        started = time.perf_counter()
        step.run(steps)
        return (time.perf_counter() - started) / steps

    memory = PeakMemory()
    first, once = block(1), block(1)
    steps = max(1, round(seconds / _BLOCKS / once))
    count = min(_BLOCKS, max(2, int(seconds / once)))
    blocks = [once] if once >= seconds else []  # a long one counts
    blocks += [block(steps) for _ in range(count - len(blocks))]
    held = memory.read()
    beside = held - imported if held and imported else None
    return {
        "step_seconds": statistics.median(blocks),
        "least_seconds": min(blocks),
        "greatest_seconds": max(blocks),
        "first_step_seconds": first,
        "steps": count * steps,
        "memory_bytes": step.memory() if step.memory else beside,
        "notes": [*step.notes],
    }


#: Fraction of the memory that a predicted batch may fill.
_FILLED = 0.92


def sizes_to_try(
    small: int, memory: int | None, fixed: int, limit: int | None
) -> Iterator[int]:
    """Yields batch sizes from the largest that may fit, in multiples of 8.

    Args:
        small: A batch size that fits.
        memory: Bytes that its step needs.
        fixed: Bytes that any batch size needs, the state.
        limit: Bytes of the device.
    """
    if memory is None or limit is None:
        return
    each = max(1, memory - fixed) / small
    batch = int((_FILLED * limit - fixed) / each)
    for _ in range(4):
        batch -= batch % 8
        if batch <= small:
            return
        yield batch
        batch = int(0.85 * batch)


def rows(job: Job, steps, imported: int | None = None) -> Iterator[dict]:
    """Yields a row for every batch size of a job.

    Args:
        job: The job.
        steps: Makes its steps: `prepare(batch)` returns a `Step`, `release()` frees
            the memory of steps that nothing refers to, `fixed_bytes` and `limit_bytes`
            are as in `sizes_to_try`.
        imported: As for `measure_step`.
    """

    def row(batch, which):
        steps.release()
        started = time.perf_counter()
        step = steps.prepare(batch)
        prepared = time.perf_counter() - started
        measured = measure_step(step, job.seconds, imported)
        measured["compile_seconds"] = prepared + measured.pop("first_step_seconds")
        if job.trace:
            with steps.traced(os.path.join(job.trace, f"{job.name}_{batch}")):
                step.run(3)
        return {"batch": batch, "which": which, **measured}

    small = row(job.small, "small")
    yield small
    if job.largest == 0:
        return
    nothing = f"none above {job.small} clips fits"
    if job.largest is None and steps.limit_bytes is None:
        nothing = "the device tells no limit of memory: give --largest"
    if job.largest is None:
        tried = sizes_to_try(
            job.small, small["memory_bytes"], steps.fixed_bytes, steps.limit_bytes
        )
    else:
        tried = [int(job.largest * share) for share in (1, 0.85, 0.7, 0.5)]
    refused = []
    for batch in tried:
        if batch <= job.small:
            break
        try:
            largest = row(batch, "largest")
        except Exception as error:  # of memory, or of a library at such sizes
            refused.append(f"{batch} clips: {first_line(error)}")
            print(f"{job.name}: {refused[-1]}", file=sys.stderr, flush=True)
            continue
        largest["notes"] += refused
        yield largest
        return
    yield {"which": "largest", "failed": "; ".join(refused) or nothing}


def first_line(error: BaseException) -> str:
    """Returns an error's kind and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def main() -> None:
    # Libraries print to stdout: keep it for the rows, and give them stderr.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def write(**line):
        print(json.dumps(line), file=out, flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        # Before there is a job: imports overlap with another process's measurements.
        chosen = IMPLEMENTATIONS[sys.argv[1]]
        steps_module, *_ = map(importlib.import_module, (chosen.steps, *chosen.modules))
        line = sys.stdin.readline()
        if not line:
            return
        job = Job(**json.loads(line))
        imported = PeakMemory().read()
        try:
            steps = steps_module.make_steps(job)
            write(device=steps.device)
            for row in rows(job, steps, imported):
                write(row=row)
        except Exception as error:
            traceback.print_exc()
            write(failed=first_line(error))


if __name__ == "__main__":
    main()
