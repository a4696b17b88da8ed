"""Prediction of the time that a run takes, from the time of its first steps."""

from collections.abc import Iterator, Mapping

from sparse_tube_vit.config import ConfigDict, input_size
from sparse_tube_vit.errors import TubeViTError
from sparse_tube_vit.models.flops import forward_flops, step_flops
from sparse_tube_vit.models.tubevit import TubeViT, make_model
from sparse_tube_vit.training.reporting import clock_time

#: Steps after a compilation, by which a run predicts its time.
STEPS = 20

#: Seconds above which a run says what would be quicker.
LONG = 300


def forecast(
    config: ConfigDict,
    model: TubeViT,
    examples: Mapping[str, int],
    done: int,
    step_seconds: float,
    quicker: Mapping[str, ConfigDict] | None = None,
) -> str:
    """Returns text on the time that is left of a run, and on what would be quicker.

    Times are in proportion to the model's FLOPs.

    Args:
        config: The config of the run.
        model: Its model.
        examples: Number of examples of every evaluation.
        done: Number of steps taken.
        step_seconds: Measured seconds of a step.
        quicker: Options that a long run is told of, `finetuning.faster_configs`.
    """
    seconds_per_flop = step_seconds / _flops_of_step(config, model, done)
    times = len([step for step in _evaluated(config) if step > done])
    times *= bool(examples)
    training = step_seconds * steps_left(config, model, done)
    evaluating = times * seconds_per_flop * evaluation_flops(config, model, examples)
    later = ""
    if done < (heads := config.optimizer.head_steps):
        seconds = seconds_per_flop * step_flops(config, model)
        later = f", and about {seconds:.3g} s after step {heads},"
    text = (
        f"At {step_seconds:.3g} s a step{later} this run takes about "
        f"{clock_time(training + evaluating)} more: {clock_time(training)} for "
        f"{_count(config.total_steps - done, 'step')}, {clock_time(evaluating)} for "
        f"{_count(times, 'evaluation')}."
    )
    if training + evaluating < LONG:
        return text
    savings = list(_savings(config, model, examples, quicker or {}))
    if not savings:
        return text
    return "\n  ".join([f"{text} In a new --workdir these are quicker:", *savings])


def _count(number, what):
    return f"{number} {what}" + "s" * (number != 1)


def _evaluated(config):
    """Returns the steps after which a run evaluates."""
    total, every = config.total_steps, config.evaluate_every_steps
    return {*range(every, total, every), total} if every else {total}


def _flops_of_step(config, model, step):
    return step_flops(config, model, heads_alone=step <= config.optimizer.head_steps)


def steps_left(config: ConfigDict, model: TubeViT, done: int) -> float:
    """Returns how many times the FLOPs of step `done` are left to do.

    These are the steps that are left, unless step `done` is of the first
    `optimizer.head_steps`, which cost less than later ones.
    """
    heads, total = max(config.optimizer.head_steps - done, 0), config.total_steps
    later = step_flops(config, model) / _flops_of_step(config, model, done)
    return heads + (total - done - heads) * later


def evaluation_flops(
    config: ConfigDict, model: TubeViT, examples: Mapping[str, int]
) -> int:
    """Returns the model's FLOPs of evaluations.

    Args:
        config: The config of the run.
        model: Its model.
        examples: Number of examples by the evaluations' names.
    """
    flops = 0
    for name, count in examples.items():
        e = config.evaluations[name]
        clip = input_size(config.clip, e.kind)
        view = forward_flops(model.restride(e.stride_scale), clip, e.head)
        flops += count * e.temporal_views * e.spatial_views * sum(view.values())
    return flops


def _savings(config, model, examples, quicker) -> Iterator[str]:
    """Yields the options that save a tenth of the time of a whole run, or more."""

    def flops(config):
        changed = make_model(config, model.classes)
        training = steps_left(config, changed, 0) * _flops_of_step(config, changed, 0)
        evaluating = evaluation_flops(config, changed, examples)
        return training + len(_evaluated(config)) * evaluating

    whole = flops(config)
    for option, changed in quicker.items():
        try:
            share = flops(changed) / whole
        except TubeViTError:  # tubes with an offset may need all of a clip
            continue
        if share < 0.9:
            yield f"--config.{option}: {share:.0%} of the time"
