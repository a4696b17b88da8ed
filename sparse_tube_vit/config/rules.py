"""Rules of a configuration: values of single keys, and keys that must go together."""

import math
import re
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from sparse_tube_vit.config.keys import NAME, InvalidConfig
from sparse_tube_vit.config.model import EncoderOptions
from sparse_tube_vit.config.schema import (
    EVALUATION,
    SCHEMA,
    SOURCES,
    VIEWS,
    WEIGHTS_SUFFIXES,
    default_config,
    evaluation,
    get_key,
    leaves,
    message_of,
    open_keys,
    stream,
    wrong_keys,
)

_OPEN = (None, "")  # values of keys that are filled in later


def validate(config: ConfigDict, data: bool = True) -> None:
    """Checks a config before anything is compiled.

    Args:
        config: The config.
        data: Whether data sets and what follows from them must be set; without, the
            model alone can be made.

    Raises:
        InvalidConfig: It cannot work; the message lists what is wrong, first of single
            values, and once these are allowed of values together.
    """
    if keys := open_keys(config):
        raise InvalidConfig(
            f"These keys are open: {', '.join(keys)}. Only training takes them from "
            "config.init.weights: set their values here."
        )
    wrong = [*_wrong_values(config, () if data else _OPEN)]
    if not config.streams:
        wrong.append("streams is empty: there is nothing to train on.")
    _raise(wrong)
    heads = {str(s.head) for s in config.streams.values()}
    _raise(
        [
            *_wrong_losses(config, heads),
            *_wrong_evaluations(config, heads),
            *_wrong_init(config, heads),
            *_wrong_shares(config),
            *_wrong_layers(config),
            *_wrong_steps(config),
        ]
    )


def check_values(config: ConfigDict) -> None:
    """Checks the values of single keys; open ones, None or empty, are allowed.

    Raises:
        InvalidConfig: A value breaks its key's rule.
    """
    _raise([*_wrong_values(config, _OPEN)])


def from_json(values: Mapping) -> ConfigDict:
    """Returns the config that a checkpoint stores; keys it lacks take their defaults.

    Raises:
        InvalidConfig: It has keys, types or values that this version does not know.
    """

    def tuples(value):
        if isinstance(value, Mapping):
            return {key: tuples(v) for key, v in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config = default_config()
    try:
        values = tuples(values)
        for section, make in (("streams", stream), ("evaluations", evaluation)):
            for name, source in values.pop(section).items():
                config[section][name] = make(**source)
        frozen = values.get("optimizer", {}).pop("frozen_layers", None)  # older ones'
        config.update(values)
        if frozen is not None:
            layers = config.model.depth + config.model.new_layers
            config.optimizer.trained_layers = layers - frozen
        _raise([*_wrong_values(config)])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidConfig(
            "This version of sparse_tube_vit cannot read the saved config: "
            f"{message_of(error)} A newer version may have written it: upgrade."
        ) from error
    return config


def _raise(wrong):
    if wrong:
        raise InvalidConfig("\n".join(["The configuration cannot work:", *wrong]))


def _wrong_values(config, still_open=()) -> Iterator[str]:
    """Yields values that break their key's rule; `still_open` ones are allowed."""
    yield from _wrong_in(config, SCHEMA, "", still_open)
    for section, schema in SOURCES.items():
        for name, source in config[section].items():
            where = f"{section}.{name}"
            if problem := NAME.problem(f"The name of {where}", name):
                yield problem
            yield from wrong_keys(where, schema, source, complete=True)
            known = {name: key for name, key in schema.items() if name in source}
            yield from _wrong_in(source, known, f"{where}.", still_open)


def _wrong_in(section, schema, prefix, still_open):
    for name, key in leaves(schema):
        value = get_key(section, name)
        if key.rule and value not in still_open:
            problem = key.rule.problem(f"{prefix}{name}", value)
            yield from filter(None, [problem])


def _wrong_losses(config, heads):
    """Yields losses that weigh nothing, and heads with several.

    Logits of a head with several losses would have several meanings.
    """
    if not any(s.loss_weight for s in config.streams.values()):
        yield "All streams have a loss_weight of 0: nothing would train."
    for head in sorted(heads):
        losses = {name: s.loss for name, s in config.streams.items() if s.head == head}
        if len(set(losses.values())) > 1:
            which = ", ".join(f"{loss!r} in {name}" for name, loss in losses.items())
            yield (
                f"head {head!r} has the losses {which}: give the streams one loss or "
                "heads of their own."
            )


def _wrong_evaluations(config, heads):
    """Yields evaluations of untrained heads, and strides or views that do not apply."""
    positions = config.model.positions
    one_view = {key: EVALUATION[key].default for key in VIEWS}
    for name, e in config.evaluations.items():
        if str(e.head) not in heads:
            yield (
                f"evaluations.{name}.head is {e.head!r}, but the streams train "
                f"{_listed(heads)}."
            )
        fixed_grid = positions in ("learned", "fixed_no_stride")
        if e.stride_scale != 1 and fixed_grid:
            yield (
                f"evaluations.{name}.stride_scale is {e.stride_scale}, but {positions} "
                "positions fit the tokens of training alone."
            )
        views = {key: e[key] for key in VIEWS}
        if e.kind == "image" and views != one_view:
            yield (
                f"evaluations.{name} is of images, of which there is one view, but has "
                f"{views}: leave these out."
            )


def _listed(heads):
    return ", ".join(sorted(heads)) or "none"


def _wrong_layers(config):
    """Yields options of the model and frozen layers that do not go together."""
    if config.model.positions == "none" and config.model.position_gain is not None:
        yield (
            f"model.position_gain is {config.model.position_gain}, but model.positions "
            "'none': there is nothing to scale. Set one of them to None or 'fixed'."
        )
    options = EncoderOptions.of(config)
    yield from options.conflicts("model.")
    gate, trained = options.gate_after, config.optimizer.trained_layers
    if trained is not None and trained > options.layers:
        yield (
            f"optimizer.trained_layers is {trained}: the model has {options.layers} "
            "layers."
        )
    elif gate is not None and gate < options.frozen_layers and not config.init.weights:
        yield (
            f"model.gate_after is {gate}, but optimizer.trained_layers {trained} of "
            f"{options.layers} layers, and init.weights is empty: the gate would stay "
            f"at 0. Set it to {options.frozen_layers} or more."
        )


def _wrong_init(config, heads):
    """Yields keys of section `init` that do not fit the rest."""
    init = config.init
    if init.positions == "keep" and config.model.positions != "learned":
        yield (
            f"init.positions is 'keep', but model.positions {config.model.positions!r} "
            "are not learned."
        )
    if init.positions == "keep" and not init.weights:
        yield "init.positions is 'keep', but there are no init.weights to keep them of."
    if init.inflate != "none" and not init.weights:
        yield f"init.inflate is {init.inflate!r}, but there are no init.weights."
    elif init.inflate != "none" and config.model.kernels == "interpolated":
        yield (
            f"init.inflate is {init.inflate!r}, but model.kernels is 'interpolated': "
            "no tube has a kernel of its own that could be made from 2-D patches."
        )
    if init.head and init.head not in heads:
        yield f"init.head is {init.head!r}, but the streams train {_listed(heads)}."
    if both := heads.intersection(init.keep_heads):
        yield (
            f"init.keep_heads has {_listed(both)}, which the streams train: leave it "
            "out; a head of the same classes goes on from there."
        )
    # Files are of image ViTs; a folder may be of one too, or a run or a release.
    if init.weights.endswith(WEIGHTS_SUFFIXES) or not init.weights:
        yield from wrong_source(config, bool(init.weights))


def wrong_source(config: ConfigDict, image_vit: bool) -> Iterator[str]:
    """Yields keys of section `init` that do not go with the kind of `init.weights`.

    Args:
        config: The config of a run.
        image_vit: Whether they are of an image ViT; else of a run or a release.
    """
    init = config.init
    for key in ("fresh", "keep_heads"):
        if init[key] and (not init.weights or image_vit):
            yield (
                f"init.{key} is {init[key]!r}, but init.weights {init.weights!r} is "
                "not a run whose parameters could be left out or kept."
            )
    if image_vit and config.model.kernels == "interpolated":
        yield (
            f"init.weights is {init.weights!r}, whose patches no tube can take: "
            "model.kernels is 'interpolated', one kernel of 8x8x8 for all."
        )
    for key in ("head", "normalization"):
        if init[key] != SCHEMA["init"][key].default and not image_vit:
            yield (
                f"init.{key} is {init[key]!r}, but init.weights {init.weights!r} is "
                "not of an image ViT (.npz, .safetensors, or a folder of the Hub)."
            )


def _wrong_shares(config):
    """Yields what is wrong with `loader.shares`."""
    text, workers = config.loader.shares, config.loader.workers
    if not text:
        return
    if workers is not None:
        yield (
            f"loader.shares is {text!r}, but loader.workers {workers}, for each stream "
            "alike: set one of them."
        )
    shares = worker_shares(config)
    positive = all(0 < share < math.inf for share in shares.values())
    if set(shares) != set(config.streams) or not positive:
        streams = ",".join(f"{name}=1" for name in config.streams)
        yield (
            f"loader.shares is {text!r}: it must give every stream a number above 0, "
            f"as in {streams}."
        )


def _wrong_steps(config):
    """Yields steps that are not within those of the run."""
    total, warmup = config.total_steps, config.optimizer.warmup_steps
    if total is None or warmup is None:
        return  # still open
    if warmup >= total:
        yield f"optimizer.warmup_steps {warmup} is not below total_steps {total}."
    if (heads := config.optimizer.head_steps) and heads + warmup >= total:
        yield (
            f"optimizer.head_steps {heads} and warmup_steps {warmup} are not below "
            f"total_steps {total}. To train pooling and heads alone, set "
            "optimizer.trained_layers to 0."
        )
    if config.profile_steps:
        first, last = profiled_steps(config) or (0, 0)
        if not 1 <= first <= last <= total:
            yield (
                f"profile_steps is {config.profile_steps!r}: it must be empty or two "
                f"steps, first and last, of 1 to {total}, as 10:15."
            )


def head_loss(config: ConfigDict, head: str) -> str:
    """Returns the name of the loss that a head is trained with."""
    kept = dict.fromkeys(config.init.keep_heads, "softmax")
    return (kept | {s.head: s.loss for s in config.streams.values()})[head]


def worker_shares(config: ConfigDict) -> dict[str, float]:
    """Returns the numbers that `loader.shares` gives, by stream; {} if unreadable."""
    pairs = [part.partition("=") for part in config.loader.shares.split(",")]
    try:
        shares = {name.strip(): float(share) for name, _, share in pairs}
    except ValueError:
        return {}
    return shares if len(shares) == len(pairs) else {}  # no stream twice


def profiled_steps(config: ConfigDict) -> tuple[int, int] | None:
    """Returns the (first, last) step to trace; None where `profile_steps` has none."""
    match = re.fullmatch(r"(\d+):(\d+)", config.profile_steps)
    return match and (int(match[1]), int(match[2]))
