"""Writes the shards of a plan on many machines, as an Apache Beam pipeline."""

import os
import shlex

from sparse_tube_vit.datasets.preparing import write
from sparse_tube_vit.datasets.preparing.plan import unfinished
from sparse_tube_vit.errors import DatasetError, TubeViTError


class NoBeam(DatasetError):
    """Apache Beam is not installed."""


class BeamFailed(DatasetError):
    """An Apache Beam pipeline failed."""


def write_shards(plan, options: str) -> None:
    """Writes all unfinished shards of a plan.

    Args:
        plan: Path of the plan, readable by the workers.
        options: Options of the pipeline, as on a command line.

    Raises:
        NoBeam: Apache Beam is not installed.
        BeamFailed: The pipeline failed.
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
        # Workers send text: a stack trace with the error itself at its end.
        *_, last = str(error).strip().splitlines() or [type(error).__name__]
        raise BeamFailed(
            f"{last} (Finished shards are kept: run the same command again.)"
        ) from error
