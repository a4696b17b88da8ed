"""Profiler traces of some steps of a run, for XProf and TensorBoard."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

import jax
from etils import epath

from sparse_tube_vit.config import ConfigDict, profiled_steps
from sparse_tube_vit.log import log
from sparse_tube_vit.training.reporting import Reporter


def traced_steps(
    config: ConfigDict, workdir: epath.Path, first: int, reporter: Reporter
) -> Iterator[int]:
    """Yields the steps of a run, and traces those of `profile_steps`.

    Every step is annotated with its number. Only the first host writes a trace, of its
    own devices, to `workdir`/plugins/profile, where TensorBoard looks for it. A trace
    ends one step late, when the devices have finished all of its steps.

    Args:
        config: The config of the run.
        workdir: The work directory of the run.
        first: The first step to yield, counted from 1.
        reporter: Counts the time of writing the trace as logging.
    """
    start, stop = profiled_steps(config) or (0, -1)
    if 0 < stop < first:
        log.warning(
            "profile_steps %s are done: the run goes on from step %d.",
            config.profile_steps,
            first,
        )
    with contextlib.ExitStack() as trace:
        for step in range(first, config.total_steps + 1):
            if reporter.first_host and step == max(start, first) <= stop:
                trace.enter_context(_trace(workdir))
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step
            if step == stop + 1:
                with reporter.time("logging"):
                    trace.close()


@contextlib.contextmanager
def _trace(workdir):
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # function calls make traces large and slow
    # The profiler writes local files only; a work directory may be gs://...
    with tempfile.TemporaryDirectory() as directory:
        try:
            with jax.profiler.trace(directory, profiler_options=options):
                yield
        finally:  # a run that is stopped keeps its trace
            for file in pathlib.Path(directory).rglob("*.*"):
                target = workdir / file.relative_to(directory)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    log.info("A trace is in %s/plugins/profile: xprof %s", workdir, workdir)
