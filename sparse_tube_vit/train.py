"""Trains TubeViT on streams of images and videos.

    python -m sparse_tube_vit.train --config FILE --workdir DIR [--config.key=value]

The same command again resumes an interrupted run from its latest checkpoint.
"""

import contextlib

import jax
from absl import app, flags
from clu import parameter_overview
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import config_flags

from sparse_tube_vit.checkpoints import pretrained, release
from sparse_tube_vit.checkpoints.run import Checkpoints, describe_run
from sparse_tube_vit.config import ConfigDict, validate
from sparse_tube_vit.config.flags import parse_flags
from sparse_tube_vit.datasets import reading
from sparse_tube_vit.datasets.classes import check_loss, classes_by_head
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.distributed import hosts, sharding
from sparse_tube_vit.errors import reported
from sparse_tube_vit.evaluation import evaluator
from sparse_tube_vit.input import pipeline
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.storage import is_remote, make_workdir
from sparse_tube_vit.training import finetuning
from sparse_tube_vit.training.freezing import check_new
from sparse_tube_vit.training.profiling import traced_steps
from sparse_tube_vit.training.program import Program
from sparse_tube_vit.training.reporting import Reporter
from sparse_tube_vit.training.signals import Interrupted, StopOnSignal
from sparse_tube_vit.training.state import TrainState
from sparse_tube_vit.training.step import check_finite
from sparse_tube_vit.training.undecodable import Undecodable


def train(config: ConfigDict, workdir) -> TrainState:
    """Trains, or resumes, the run of `config` in `workdir`; returns the last state.

    Raises: the named errors of config, datasets, input, training and checkpoints.
    """
    with hosts.first_host_first("folder"):
        config = finetuning.complete(config, workdir)
    validate(config)
    make_model(config, {})  # before data sets are made or opened
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
        compilation_cache.reset_cache()  # else jax stays with the one it has opened
    workdir = epath.Path(workdir)
    make_workdir(workdir)
    hosts.check_shared(workdir)
    first_host = jax.process_index() == 0

    # ---- data sets and their classes
    with hosts.first_host_first("embedded data"):
        prepare_embedded(config)
        splits = {
            name: reading.open_split(
                stream.dataset, stream.split, config.data_dir, stream.kind
            )
            for name, stream in config.streams.items()
        }
    for name, stream in config.streams.items():
        check_loss(f"streams.{name}", stream.loss, splits[name])
    class_names = classes_by_head(
        (stream.head, splits[name]) for name, stream in config.streams.items()
    ) | finetuning.kept_heads(config, workdir)
    evaluations = evaluator.prepare(config, class_names)
    run = describe_run(config, class_names)
    hosts.check_same(
        run
        | {"streams": {name: len(split) for name, split in splits.items()}}
        | {"evaluations": {e.name: len(e.split) for e in evaluations}}
    )

    # ---- one compiled program for all streams, and the state it starts from
    mesh = sharding.make_mesh(config)
    classes = {head: len(names) for head, names in class_names.items()}
    program = Program(config, classes, mesh)
    checkpoints = Checkpoints(workdir, config.checkpoint.keep, run)
    if checkpoints.resumable:
        state = checkpoints.resume(program.state)
    else:
        state = program.init(initial_params(config, program, class_names))
    first_step = int(state.step)
    if first_host:
        overview = parameter_overview.get_parameter_overview(
            state.params, include_stats="sharding"
        )
        (workdir / "parameters.txt").write_text(overview + "\n")
    count = sum(x.size for x in jax.tree.leaves(state.params))
    log.info("%s parameters, listed in %s/parameters.txt", f"{count:,}", workdir)

    # ---- the streams, each from the first step that is still to be taken
    streams = {
        name: pipeline.training_batches(
            splits[name],
            name,
            stream,
            config.clip,
            config.loader,
            config.seed,
            first_step,
            *sharding.batch_share(mesh),
        )
        for name, stream in config.streams.items()
    }
    undecodable = {
        name: Undecodable(split, config.loader.max_undecodable)
        for name, split in splits.items()
    }
    found = {}  # what does not decode and was not told yet: stream -> id -> problem

    def next_batches():
        with reporter.time("input"):
            batches = {name: next(stream) for name, stream in streams.items()}
            for name, batch in batches.items():
                if new := undecodable[name].find(batch):
                    found[name] = found.get(name, {}) | new
            return sharding.to_devices(
                {
                    name: {key: batch[key] for key in ("video", "label", "weight")}
                    for name, batch in batches.items()
                },
                mesh,
            )

    def finish_checkpoints():
        with reporter.time("checkpoint"):
            checkpoints.close()

    reporter = Reporter(workdir, first_step, config.total_steps, first_host)
    news = hosts.HostMessages()
    clips_per_step = sum(stream.batch_size for stream in config.streams.values())

    with contextlib.ExitStack() as stack, StopOnSignal() as stop:
        stack.callback(reporter.close)
        stack.callback(finish_checkpoints)
        for stream in streams.values():
            stack.callback(stream.close)
        steps = traced_steps(config, workdir, first_step + 1, reporter)
        stack.callback(steps.close)
        stack.push(hosts.announce)

        def due(step):
            every = config.evaluate_every_steps
            return step == config.total_steps or bool(every and step % every == 0)

        def stop_if_told():
            news.send(stop=stop.requested)
            if news.receive():
                raise Interrupted(
                    "Stopped by a signal in an evaluation; the step before it is saved "
                    f"in {workdir}."
                )

        def run_evaluations(step):
            with reporter.time("evaluation"):
                for evaluation in evaluations:
                    result = evaluation.run(
                        program.model, state.eval_params, mesh, step, stop_if_told
                    )
                    reporter.write(step, result.scalars())
                    log.info("%s", result)
                    if first_host:
                        result.save(workdir / "evaluations")

        if first_step and due(first_step):  # stopped before they were done, perhaps
            run_evaluations(first_step)
        metrics = following = None
        for step in steps:
            batches = following or next_batches()
            news.send(stop=stop.requested, undecodable=dict(found))
            found.clear()
            previous, (state, metrics) = metrics, program.train_step(state, batches)
            reporter.given(metrics)
            # The next batches go to the devices while these take the step.
            following = next_batches() if step < config.total_steps else None
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                reporter.compiled()
            # The loss of the step before is there by now: looking at it costs no time.
            check_finite(previous, step - 1)

            last, stopping = step == config.total_steps, False
            for told in news.receive():
                stopping |= told["stop"]
                for name, problems in told["undecodable"].items():
                    for line in undecodable[name].note(problems):
                        log.warning(line)
            if last or stopping or step % config.log_every_steps == 0:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                check_finite(values, step)
                counts = {
                    f"{name}/undecodable": len(u.problems)
                    for name, u in undecodable.items()
                }
                reporter.training(step, values | counts, clips_per_step)
            if stopping or due(step) or step % config.checkpoint.every_steps == 0:
                check_finite(metrics, step)
                with reporter.time("checkpoint"):
                    checkpoints.save(state)
            if stopping and not last:
                raise Interrupted(
                    f"Stopped by a signal; step {step} is saved in {workdir}."
                )
            if due(step):
                run_evaluations(step)
    if config.checkpoint.release and first_host:
        write_release(workdir)
    return state


def write_release(workdir: epath.Path) -> None:
    """Makes the last checkpoint the release WORKDIR/release, in place of another."""
    directory = workdir / "release"
    if is_remote(workdir):
        log.warning(
            "A release is written to a local disk: python -m sparse_tube_vit.release "
            "--workdir %s --out DIR",
            workdir,
        )
        return
    found = release.release(workdir, directory, overwrite=True)
    log.info("Wrote %s as a release to %s", found.name, directory)


def initial_params(config: ConfigDict, program: Program, class_names: dict) -> dict:
    """The parameters that a fresh run takes from `init.weights`, a part of the tree.

    Raises:
      NewButFrozen: what they lack is frozen; and the errors of `pretrained`.
    """
    if config.init.weights:
        given, report = pretrained.initial_params(
            config, program.model, program.state.params, class_names
        )
        log.info("%s", report)
        check_new(report.new, config)
        return given
    if config.optimizer.frozen_layers is not None:
        log.warning(
            "optimizer.frozen_layers is %d and init.weights is empty: what is frozen "
            "keeps its random parameters.",
            config.optimizer.frozen_layers,
        )
    return {}


def main(argv):
    del argv
    to_stderr()
    with reported(), hosts.connected():
        train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    _WORKDIR = flags.DEFINE_string("workdir", None, "Where the run's files go.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
