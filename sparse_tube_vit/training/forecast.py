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


class Forecast:
    """Predicts the time of a run, in proportion to its model's FLOPs.

    Args:
        config: The config of the run.
        model: Its model.
        examples: Number of examples of every evaluation.
    """

    def __init__(self, config: ConfigDict, model: TubeViT, examples: Mapping[str, int]):
        self._config, self._classes, self._examples = config, model.classes, examples
        self._heads, self._total = config.optimizer.head_steps, config.total_steps
        self._flops = {x: step_flops(config, model, x) for x in (False, True)}
        self._evaluation = evaluation_flops(config, model, examples)

    def text(
        self,
        done: int,
        step_seconds: float,
        quicker: Mapping[str, ConfigDict] | None = None,
    ) -> str:
        """Returns text on the time that is left, and on what would be quicker.

        Args:
            done: Number of steps taken.
            step_seconds: Measured seconds of a step.
            quicker: Options that a long run is told of, `finetuning.faster_configs`.
        """
        seconds_per_flop = step_seconds / self._flops[done <= self._heads]
        times = len([step for step in _evaluated(self._config) if step > done])
        times *= bool(self._examples)
        training = step_seconds * self.steps_left(done)
        evaluating = times * seconds_per_flop * self._evaluation
        later = ""
        if done < self._heads:
            seconds = seconds_per_flop * self._flops[False]
            later = f", and about {seconds:.3g} s after step {self._heads},"
        text = (
            f"At {step_seconds:.3g} s a step{later} this run takes about "
            f"{clock_time(training + evaluating)} more: {clock_time(training)} for "
            f"{_count(self._total - done, 'step')}, {clock_time(evaluating)} for "
            f"{_count(times, 'evaluation')}."
        )
        if training + evaluating < LONG:
            return text
        if not (savings := list(self._savings(quicker or {}))):
            return text
        return "\n  ".join([f"{text} In a new --workdir these are quicker:", *savings])

    def steps_left(self, done: int) -> float:
        """Returns how many times the FLOPs of step `done` are left to do.

        These are the steps that are left, unless step `done` is of the first
        `optimizer.head_steps`, which cost less than later ones.
        """
        heads = max(self._heads - done, 0)
        later = self._flops[False] / self._flops[done <= self._heads]
        return heads + (self._total - done - heads) * later

    @property
    def training_flops(self) -> float:
        """The model's FLOPs of all steps of the run."""
        later = self._total - self._heads
        return self._heads * self._flops[True] + later * self._flops[False]

    def _whole(self):
        evaluating = len(_evaluated(self._config)) * self._evaluation
        return self.training_flops + evaluating

    def _savings(self, quicker) -> Iterator[str]:
        """Yields the options that save a tenth of the time of a whole run, or more."""
        for option, config in quicker.items():
            try:
                model = make_model(config, self._classes)
                share = Forecast(config, model, self._examples)._whole() / self._whole()
            except TubeViTError:  # tubes with an offset may need all of a clip
                continue
            if share < 0.9:
                yield f"--config.{option}: {share:.0%} of the time"


def _count(number, what):
    return f"{number} {what}" + "s" * (number != 1)


def _evaluated(config):
    """Returns the steps after which a run evaluates."""
    total, every = config.total_steps, config.evaluate_every_steps
    return {*range(every, total, every), total} if every else {total}


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
