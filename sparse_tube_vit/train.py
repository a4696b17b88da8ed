"""Trains TubeViT on streams of images and videos.

    sparse-tube-vit train --config FILE --workdir DIR [--config.key=value]

The same command again resumes an interrupted run from its latest checkpoint.
"""

import signal

if __name__ == "__main__":
    # While there is nothing to save, Ctrl-C ends the command as SIGTERM does, imports
    # included. Python's own KeyboardInterrupt waits for the compiler, ends in a trace,
    # and is lost where it is raised in a callback of a library.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import json
from collections.abc import Sequence

import jax
from clu import parameter_overview
from etils import epath
from flax.traverse_util import flatten_dict
from jax.experimental.compilation_cache import compilation_cache

from sparse_tube_vit.checkpoints import release
from sparse_tube_vit.checkpoints.evaluations import read_evaluations
from sparse_tube_vit.checkpoints.run import (
    Checkpoints,
    describe_run,
    remove_unfinished,
    set_damaged_aside,
)
from sparse_tube_vit.checkpoints.workdir import (
    WorkdirLock,
    check_deletion,
    make_workdir,
    remove_empty,
)
from sparse_tube_vit.config import ConfigDict, check_values
from sparse_tube_vit.config.flags import CommandParser, add_config, describe_keys
from sparse_tube_vit.datasets.classes import classes_by_head, warn_of_flips
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.distributed import devices, hosts, sharding
from sparse_tube_vit.errors import reported
from sparse_tube_vit.evaluation import evaluator
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.models.tubevit import check_tubes
from sparse_tube_vit.storage import is_remote, remove_leftovers, writing
from sparse_tube_vit.training import finetuning, forecast
from sparse_tube_vit.training.batches import TrainingBatches, open_streams
from sparse_tube_vit.training.freezing import frozen_parts, partition
from sparse_tube_vit.training.initialization import initial_params
from sparse_tube_vit.training.optimizer import describe_rates, has_rates_by_layer
from sparse_tube_vit.training.profiling import traced_steps
from sparse_tube_vit.training.program import Program
from sparse_tube_vit.training.reporting import Reporter, read_metrics
from sparse_tube_vit.training.signals import StopSignals
from sparse_tube_vit.training.state import TrainState
from sparse_tube_vit.training.step import check_finite
from sparse_tube_vit.training.utilization import Utilization, read_prediction


def train(config: ConfigDict, workdir) -> TrainState:
    """Trains, or resumes, the run of `config` in `workdir`; returns the last state.

    Raises:
        TubeViTError: The named errors of config, datasets, input, training and
            checkpoints.
    """
    check_values(config)
    workdir = epath.Path(workdir)
    made = make_workdir(workdir)
    check_deletion(workdir)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.callback(remove_empty, made)  # where the run is refused
        lock = None
        with hosts.first_host_first("work directory"):
            if jax.process_index() == 0:
                lock = stack.enter_context(contextlib.closing(WorkdirLock(workdir)))
                for directory in ("", "checkpoints", "evaluations"):
                    remove_leftovers(workdir / directory)
                set_damaged_aside(workdir)
        return _train(config, workdir, lock)


def _train(config, workdir, lock):
    """Trains in a work directory that the first host has locked."""
    # ---- config
    # What does not fit is said before folders are prepared, which may take hours.
    unfilled = config
    with hosts.first_host_first("settings"):
        config = finetuning.complete(unfilled, workdir, data=False)
    check_tubes(config)
    devices.log_devices()
    mesh = sharding.make_mesh(config)
    sharding.check_mesh(config, mesh)
    with hosts.first_host_first("folder"):
        config = finetuning.complete(config, workdir)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
        if is_remote(config.compilation_cache):  # XLA's own caches are of GPUs, local
            jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
        compilation_cache.reset_cache()  # else jax stays with the one it has opened
    hosts.check_shared(workdir)
    first_host = jax.process_index() == 0

    # ---- data sets, and model, optimizer and step as one program for their classes
    with hosts.first_host_first("embedded data"):
        sources = (*config.streams.values(), *config.evaluations.values())
        prepare_embedded((source.dataset for source in sources), config.data_dir)
    splits = open_streams(config)
    for name, stream in config.streams.items():
        if stream.flip:
            warn_of_flips(f"streams.{name}", splits[name])
    class_names = classes_by_head(
        (stream.head, splits[name]) for name, stream in config.streams.items()
    ) | finetuning.kept_heads(config, workdir)
    classes = {head: len(names) for head, names in class_names.items()}
    program = Program(config, classes, mesh)
    evaluations = evaluator.prepare(config, class_names, program.model, mesh)
    data = {f"streams.{name}": split.fingerprint() for name, split in splits.items()}
    run = describe_run(config, class_names, data)
    hosts.check_same(
        run,
        {f"streams.{name}": split for name, split in splits.items()}
        | {f"evaluations.{e.name}": e.split for e in evaluations},
    )

    # ---- the state to start from
    checkpoints = Checkpoints(workdir, config.checkpoint.keep, run)
    quicker = None
    if checkpoints.resumable:
        state = checkpoints.resume(program.state)
    else:
        state = program.init(initial_params(config, program, class_names))
        if jax.default_backend() == "cpu":  # where a new run is told what is quicker
            quicker = finetuning.faster_configs(config, unfilled)
    if first_host:
        lock.take_over()
        remove_unfinished(workdir)
    first_step = int(state.step)
    write_overview(state.params, workdir, first_host)
    log_rates(config, state.params)

    # ---- the loop, and what ends it in whatever way
    def is_due(step, every):
        return step == config.total_steps or bool(every and step % every == 0)

    examples = {e.name: len(e.split) for e in evaluations}
    time_left = forecast.Forecast(config, program.model, examples)
    prediction = read_prediction(workdir, config, mesh) if first_host else None
    utilization = Utilization(config, program.model, mesh, prediction)
    left = []  # evaluations of the first step that an interruption has left undone
    if first_step and is_due(first_step, config.evaluate_every_steps):
        left = unfinished(evaluations, workdir, first_step)
    reporter = Reporter(
        workdir,
        first_step,
        config.total_steps,
        first_host,
        time_left.steps_left,
        utilization,
        again=[evaluation.name for evaluation in left],
    )
    signals = StopSignals()
    with reporter.time("input"):
        batches = TrainingBatches(
            config, splits, mesh, workdir, first_step, signals, reporter
        )
    steps = traced_steps(config, workdir, first_step + 1, reporter)

    def save():
        with reporter.time("checkpoint"):
            if first_host:
                lock.check()
            reporter.flush()  # a resumed run goes on from what is written by then
            batches.save_undecodable()
            checkpoints.save(state)

    def finish_checkpoints():
        with reporter.time("checkpoint"):
            checkpoints.close()

    def stop_if_requested():
        if batches.stop_requested():
            raise batches.stopped(
                f"The step before the evaluation is saved in {workdir}."
            )

    def evaluate(step, evaluations):
        with reporter.time("evaluation"):
            for evaluation in evaluations:
                result = evaluation.run(state.eval_params, step, stop_if_requested)
                reporter.write(step, result.scalars())
                log.info("%s", result)
                if first_host:
                    result.save(workdir / "evaluations")

    with contextlib.ExitStack() as stack:
        stack.callback(signals.restore)
        stack.callback(reporter.close)
        stack.callback(finish_checkpoints)
        stack.enter_context(batches)
        stack.callback(steps.close)
        stack.push(hosts.announce)

        evaluate(first_step, left)
        metrics, heads = None, config.optimizer.head_steps
        if first_step < config.total_steps:
            log.info("Compiling the training step ...")
        for step in steps:
            previous = metrics
            state, metrics = program.train_step(state, batches.take(), step <= heads)
            reporter.dispatched(metrics)
            if step < config.total_steps:
                batches.prefetch()  # while the devices compute the step
            if step in (first_step + 1, heads + 1):
                jax.block_until_ready(metrics)
                reporter.exclude_compilation()
            if step == first_step + 1:
                signals.catch()  # before, there is nothing to save
            # The metrics of the step before are ready by now: no wait for them.
            if previous is not None:
                check_finite(previous, step - 1)

            stopping = batches.receive()
            if stopping or step == heads or is_due(step, config.log_every_steps):
                checkpoints.check_for_errors()
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                check_finite(values, step)
                values |= batches.undecodable_counts()
                reporter.report_step(step, values)
            evaluating = is_due(step, config.evaluate_every_steps)
            if stopping or evaluating or is_due(step, config.checkpoint.every_steps):
                check_finite(metrics, step)
                save()
            if reporter.timed_steps == forecast.STEPS:
                jax.block_until_ready(metrics)
                seconds = reporter.step_seconds()
                log.info("%s", time_left.text(step, seconds, quicker))
            if stopping and (step < config.total_steps or batches.too_many):
                raise batches.stopped(f"Step {step} is saved in {workdir}.")
            if evaluating:
                evaluate(step, evaluations)

    # ---- release and pictures
    if first_host:
        if config.checkpoint.release:
            release.release_last(workdir)
        # Here: training hosts import no matplotlib before their last evaluation.
        from sparse_tube_vit import figures

        figures.draw_confusions(workdir / "evaluations")
    return state


def unfinished(
    evaluations: Sequence[evaluator.Evaluator], workdir, step: int
) -> list[evaluator.Evaluator]:
    """Returns the evaluations of a step that lack their result, or metrics of it.

    The first host decides; all have to call it.
    """
    left = []
    if jax.process_index() == 0:
        results = read_evaluations(workdir / "evaluations").values()
        lines = read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []
        metrics = [name for line in lines if line["step"] == step for name in line]

        def is_finished(evaluation):
            protocol = evaluation.protocol(step)
            prefix = f"evaluation/{evaluation.name}/"
            return any(protocol.items() <= x.items() for x in results) and any(
                name.startswith(prefix) for name in metrics
            )

        left = [e.name for e in evaluations if not is_finished(e)]
    left = json.loads(hosts.gather("evaluations", json.dumps(left))[0])
    return [e for e in evaluations if e.name in left]


def write_overview(params, workdir: epath.Path, first_host: bool) -> None:
    """Writes shapes and shardings of all parameters to parameters.txt."""
    if first_host:
        overview = parameter_overview.get_parameter_overview(
            params, include_stats="sharding"
        )
        path = workdir / "parameters.txt"
        with writing(path):
            path.write_text(overview + "\n")
    count = sum(x.size for x in jax.tree.leaves(params))
    log.info("%s parameters, listed in %s/parameters.txt", f"{count:,}", workdir)


def log_rates(config: ConfigDict, params) -> None:
    """Logs the learning rates of layers, where they differ."""
    if has_rates_by_layer(config):
        trained, _ = partition(params, frozen_parts(config))
        log.info("%s", describe_rates(config, flatten_dict(trained, sep="/")))


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "train",
        description="Trains on streams of images and videos; resumes what it began.",
        epilog="\n".join(describe_keys()),
    )
    add_config(parser)
    parser.add_argument("--workdir", required=True, help="where the run's files go")
    args = parser.parse_with_config(argv)
    to_stderr()
    with reported(), hosts.connected():
        train(args.config, args.workdir)


if __name__ == "__main__":
    main()
