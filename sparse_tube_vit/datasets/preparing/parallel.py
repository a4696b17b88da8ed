"""Writes the shards of a plan side by side: in processes here, or on many machines."""

import concurrent.futures
import multiprocessing
import os
import shlex
from collections.abc import Callable, Iterable

from sparse_tube_vit.datasets.preparing import processes, write
from sparse_tube_vit.datasets.preparing.plan import Shard, unfinished
from sparse_tube_vit.errors import DatasetError, TubeViTError


class NoBeam(DatasetError):
    """Apache Beam is not installed."""


class BeamFailed(DatasetError):
    """An Apache Beam pipeline did not end well."""


def in_processes(
    shards: Iterable[Shard], workers: int, progress: Callable[[int], None]
) -> None:
    """Writes shards in processes of this machine.

    Args:
        shards: What to write.
        workers: Number of processes; with 0 it is this one.
        progress: Called with how many more examples have been seen.

    Raises:
        WorkerDied: One of the processes was killed.
        What `write_shard` raises.
    """
    if not workers:
        for shard in shards:
            write.write_shard(shard, lambda: progress(1))
        return
    seen, reported = multiprocessing.get_context("spawn").Value("q", 0), 0
    with processes.pool(workers, _count_in, seen) as pool:
        waiting = {pool.submit(_write_shard, shard) for shard in shards}
        while waiting:
            done, waiting = concurrent.futures.wait(
                waiting, 0.5, concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                future.result()
            now = seen.value
            progress(now - reported)
            reported = now


def _count_in(seen) -> None:
    global _seen
    _seen = seen


def _write_shard(shard: Shard) -> None:
    def count():
        with _seen.get_lock():
            _seen.value += 1

    write.write_shard(shard, count)


def on_beam(plan, options: str) -> None:
    """Writes all unfinished shards as an Apache Beam pipeline.

    Args:
        plan: The plan's path, which the workers must be able to read.
        options: Options of the pipeline, as on a command line.

    Raises:
        NoBeam: It is not installed.
        BeamFailed: The pipeline did not end well.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise NoBeam(
            "--beam needs Apache Beam: pip install 'apache-beam[gcp]'"
        ) from None
    try:
        with beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
            (
                pipeline
                # One worker reads the plan, all share its shards: the list of files may
                # be too long for a job's description.
                | "Plan" >> beam.Create([os.fspath(plan)])
                | "Shards" >> beam.FlatMap(unfinished)
                | "Share out" >> beam.Reshuffle()
                | "Write" >> beam.Map(write.write_shard)
            )
    except TubeViTError:
        raise
    except Exception as error:
        # From workers comes text: a stack trace, the error itself at its end.
        *_, last = str(error).strip().splitlines() or [type(error).__name__]
        raise BeamFailed(
            f"{last} (Finished shards are kept: run the same command again.)"
        ) from error
