"""Prediction of the time that a run takes, from the time of its first steps."""

from collections.abc import Iterator, Mapping

from sparse_tube_vit.config import ConfigDict, EncoderOptions, input_size
from sparse_tube_vit.models.tubes import count_tokens
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.training import recipe
from sparse_tube_vit.training.reporting import clock_time

#: Steps after a compilation, by which a run predicts its time.
STEPS = 20

#: Seconds above which a run on a CPU says what would be quicker.
LONG = 300


def forecast(
    config: ConfigDict,
    examples: Mapping[str, int],
    done: int,
    step_seconds: float,
    fewer_layers: Mapping[int, ConfigDict] | None = None,
) -> str:
    """Returns text on the time that is left of a run, and on what would be quicker.

    Args:
        config: The config of the run.
        examples: Number of examples of every evaluation.
        done: Number of steps taken.
        step_seconds: Measured seconds of a step.
        fewer_layers: `finetuning.with_fewer_layers`, for a long run to be told what
            would be quicker; None: it is not.
    """
    total, every = config.total_steps, config.evaluate_every_steps
    evaluated = {*range(every, total, every), total} if every else {total}
    times = len([step for step in evaluated if step > done]) if examples else 0
    training = step_seconds * steps_left(config, done)
    work = _work_of_step(config, done)
    evaluating = times * step_seconds * evaluation_work(config, examples) / work
    later = ""
    if done < (heads := config.optimizer.head_steps):
        seconds = step_seconds * training_work(config) / work
        later = f", and about {seconds:.3g} s after step {heads},"
    text = (
        f"At {step_seconds:.3g} s a step{later} this run takes about "
        f"{clock_time(training + evaluating)} more: {clock_time(training)} for "
        f"{_count(total - done, 'step')}, {clock_time(evaluating)} for "
        f"{_count(times, 'evaluation')}."
    )
    if fewer_layers is None or training + evaluating < LONG:
        return text
    options = list(quicker(config, fewer_layers))
    if evaluating > 0.2 * (training + evaluating):
        name = max(config.evaluations, key=lambda e: evaluation_work(config, {e: 1}))
        options.append(f"--config.evaluations.{name}.temporal_views=1: fewer views")
    return "\n  ".join([f"{text} In a new --workdir these are quicker:", *options])


def _count(number, what):
    return f"{number} {what}" + "s" * (number != 1)


def steps_left(config: ConfigDict, done: int) -> float:
    """Returns how many times the work of step `done` is left to do.

    These are the steps that are left, unless step `done` is of the first
    `optimizer.head_steps`, which cost less than later ones.
    """
    heads, total = max(config.optimizer.head_steps - done, 0), config.total_steps
    later = training_work(config) / _work_of_step(config, done)
    return heads + (total - done - heads) * later


def _work_of_step(config, step):
    """The work of a step, counted from 1, in the unit of `training_work`."""
    if step > config.optimizer.head_steps:
        return training_work(config)
    return sum(s.batch_size * _tokens(config, s) for s in config.streams.values())


def training_work(config: ConfigDict) -> float:
    """Returns the work of a step, in tokens that go forward through all blocks.

    A block's gradient costs twice its forward pass, and frozen blocks have none. The
    first `optimizer.head_steps` steps cost less.
    """
    options = EncoderOptions.of(config)
    trained = 1 - options.frozen_layers / options.layers
    streams = config.streams.values()
    return sum(s.batch_size * _tokens(config, s) for s in streams) * (1 + 2 * trained)


def evaluation_work(config: ConfigDict, examples: Mapping[str, int]) -> float:
    """Returns the work of evaluations, in the unit of `training_work`.

    Args:
        config: The config of the run.
        examples: Number of examples by the evaluations' names.
    """
    work = 0
    for name, count in examples.items():
        e = config.evaluations[name]
        views = e.temporal_views * e.spatial_views
        work += count * views * _tokens(config, e, e.stride_scale)
    return work


def _tokens(config, source, stride_scale=1.0):
    tubes = [tube.restride(stride_scale) for tube in make_tubes(config.model.tubes)]
    return count_tokens(tubes, input_size(config.clip, source.kind))


def quicker(
    config: ConfigDict, fewer_layers: Mapping[int, ConfigDict]
) -> Iterator[str]:
    """Yields options that make a run quicker, with the time that they leave.

    Args:
        config: The config of the run.
        fewer_layers: The same with fewer trained layers, by their number.
    """
    *_, patch = recipe.patch_of(make_tubes(config.model.tubes))
    changes = {}
    if (size := config.clip.size * 3 // 4 // patch * patch) >= 3 * patch:
        smaller = config.copy_and_resolve_references()
        smaller.clip.size = size
        changes[f"clip.size={size}"] = smaller
    for trained, changed in fewer_layers.items():
        what = "" if trained else " (pooling and heads alone)"
        changes[f"optimizer.trained_layers={trained}{what}"] = changed
    now = training_work(config)
    for option, changed in changes.items():
        if (share := training_work(changed) / now) < 0.9:
            yield f"--config.{option}: {share:.0%} of the time a step"
    if config.data.folder:
        half = max(config.data.epochs // 2, 1)
        yield f"--config.data.epochs={half}: fewer steps"
