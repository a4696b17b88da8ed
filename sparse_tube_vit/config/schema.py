"""What a run is made of: every key of a configuration, with its default.

A file in `configs/` starts from `default_config()` and states what differs. The config
is locked, so that a key which does not exist is an error wherever it is set.
"""

import re
from collections.abc import Iterable, Mapping

import ml_collections
from ml_collections import config_dict

from sparse_tube_vit.config.keys import InvalidConfig
from sparse_tube_vit.config.model import MODEL, EncoderOptions

ConfigDict = ml_collections.ConfigDict


def default_config() -> ConfigDict:
    """All keys of a run but its streams, with defaults. Sizes are those of B."""
    config = ConfigDict()
    config.seed = 0
    config.total_steps = config_dict.placeholder(int)
    config.data_dir = "data"

    # Own clips or images to fine-tune on, see `finetuning`: class folders in `folder`,
    # or the `relative/path,split` lines of `split_list`. Where they have no split
    # `test`, `test_share` of every class is held out. Training takes `epochs` passes.
    config.data = ConfigDict(
        {"folder": "", "split_list": "", "test_share": 0.2, "epochs": 30}
    )

    # What the model reads: clips of `frames` frames at `fps` frames per second,
    # pictures of size x size pixels. An image is one frame.
    config.clip = ConfigDict({"frames": 32, "fps": 15.0, "size": 224})

    config.model = ConfigDict(
        {
            name: config_dict.placeholder(key.value_type)
            if key.value_type
            else key.default
            for name, key in MODEL.items()
        }
    )
    config.model.tubes = "main"

    # What a run that does not resume starts from, see `pretrained`: "" for fresh
    # parameters, an image ViT's `.npz` or `.safetensors` file, another run's work
    # directory or checkpoint, or a release.
    config.init = ConfigDict(
        {
            "weights": "",
            "positions": "drop",  # a ViT's, or a run's learned for another grid; or
            # "keep" them, resized
            "inflate": "none",  # a ViT's patches for the other tubes; or "repeat" on
            # all frames, or on the "central_frame" alone
            "head": "",  # of ours, that takes the ViT's classifier
            "keep_heads": (),  # of a run, beside those that are trained; not trained
            "fresh": (),  # parts by their path that are not loaded, as ("stem",)
        }
    )

    config.streams = ConfigDict()  # name -> stream(...)
    config.evaluations = ConfigDict()  # name -> evaluation(...)

    # Adam with decoupled weight decay on kernels, linear warm-up, cosine decay to 0.
    config.optimizer = ConfigDict(
        {
            "learning_rate": 5e-5,
            "warmup_steps": 10_000,
            "weight_decay": 0.001,
            "beta1": 0.9,
            "beta2": 0.999,
            "clip_norm": 1.0,  # of the global gradient; 0: not clipped
            "first_moment_dtype": "float32",  # or "bfloat16", for less memory
            # A step takes its batches in so many parts, one after the other.
            "accumulate_steps": 1,
            "ema_decay": 0.0,  # of an average of the parameters; 0: none is kept
            # Tubes, positions and so many of the model's first layers are not trained;
            # at all of them, only pooling and heads are. None: everything is trained.
            "frozen_layers": config_dict.placeholder(int),
        }
    )

    # Mesh axes, -1: whatever devices are left. The data axis, of this size in all,
    # reaches across `slices` of a pod.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "slices": 1})

    # Directory on a local disk where compiled programs are kept for the next start;
    # "": as JAX_COMPILATION_CACHE_DIR says.
    config.compilation_cache = ""

    # `workers` processes a stream decode, or `threads` threads where there are none.
    # A run stops when more than `max_undecodable` of a stream's examples do not decode,
    # or need more than `decode_timeout_seconds` of a core for it.
    config.loader = ConfigDict(
        {
            "workers": 0,
            "threads": 2,
            "prefetch": 4,
            "max_undecodable": 0.01,
            "decode_timeout_seconds": 60.0,
        }
    )

    config.log_every_steps = 50
    config.evaluate_every_steps = 0  # 0: at the end only
    # Steps of which the first host writes a trace for XProf, "10:15"; "": of none.
    config.profile_steps = ""
    # With `release` the last one becomes the release WORKDIR/release.
    config.checkpoint = ConfigDict({"every_steps": 1000, "keep": 3, "release": False})
    config.lock()
    config.streams.unlock()
    config.evaluations.unlock()
    return config


def leave_open(section: ConfigDict, keys: Iterable[str]) -> None:
    """Makes keys None, of their type: `finetuning.complete` fills in what still is."""
    for key in keys:
        section[key] = config_dict.placeholder(section.get_type(key))


def open_keys(config: ConfigDict) -> list[str]:
    """What is None of clips and model, and may not be."""
    return [
        f"{section}.{key}"
        for section in ("clip", "model")
        for key, value in config[section].items()
        if value is None and key != "gate_after"
    ]


def from_json(values: Mapping) -> ConfigDict:
    """The config that a checkpoint holds as JSON; what is newer has its default.

    Raises:
      InvalidConfig: it has what this version does not know.
    """

    def tuples(value):
        if isinstance(value, Mapping):
            return {key: tuples(v) for key, v in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config, values = default_config(), tuples(values)
    try:
        for section, make in (("streams", stream), ("evaluations", evaluation)):
            for name, source in values.pop(section).items():
                config[section][name] = make(**source)
        config.update(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidConfig(
            "The saved config is none that this version of sparse_tube_vit knows: "
            f"{message_of(error)} A newer version may have written it: upgrade."
        ) from error
    return config


def differences(before: dict, now: dict, prefix: str = ""):
    """(key, before, now) for every leaf in which two nested dicts differ."""
    for key in sorted(before.keys() | now.keys()):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def stream(
    *,
    kind: str,
    dataset: str,
    head: str,
    batch_size: int,
    split: str = "train",
    loss: str = "softmax",
    loss_weight: float = 1.0,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    crop_area: tuple[float, float] = (0.3, 1.0),
    flip: bool = True,
    color_jitter: float = 0.0,
    randaugment_layers: int = 0,
    randaugment_magnitude: float = 10.0,
) -> ConfigDict:
    """One source of training examples: a batch of it takes part in every step.

    Args:
      kind: "image" or "video".
      dataset: as prepared below `data_dir`, for example "ucf101/split1".
      head: the classifier that its examples go through.
      batch_size: examples a step, over all hosts.
      split: of the data set.
      loss: cross entropy of a "softmax" over classes, where one of them is right, or of
        a "sigmoid" of every class, where any number may be (Charades).
      loss_weight: of its mean loss in the sum that is minimized.
      label_smoothing: share of a target that is spread evenly: over all classes
        (softmax), or over there and not there of every class (sigmoid).
      mixup: alpha of the Beta distribution that pairs are mixed with; 0: none.
      crop_area: least and greatest share of the picture that a random crop takes.
      flip: whether to mirror left to right; never where classes tell the two apart.
      color_jitter: strength of `augment.jitter_color`.
      randaugment_layers: random operations on an example, 0: none; the paper has 2.
      randaugment_magnitude: of each, 0 to 10, as in `randaugment.py`.
    """
    return ConfigDict(locals())


def evaluation(
    *,
    kind: str,
    dataset: str,
    head: str,
    batch_size: int,
    split: str = "test",
    temporal_views: int = 1,
    spatial_views: int = 1,
    stride_scale: float = 1.0,
) -> ConfigDict:
    """A measurement of accuracy: scores averaged over temporal x spatial views.

    Of a data set with one label an example, Top-1 and Top-5; mAP of a multi-label one.

    Args:
      kind, dataset, head, split: as for `stream`.
      batch_size: videos or images at a time, each with all its views.
      temporal_views: clips, spread evenly from a video's beginning to its end.
      spatial_views: square crops, spread evenly along the longer side.
      stride_scale: of the tubes' strides: below 1 gives more tokens than in training,
        above 1 fewer (paper table 7d).
    """
    return ConfigDict(locals())


def smoke(config: ConfigDict) -> ConfigDict:
    """The config shrunk to a minute on a CPU, on the embedded data set.

    Tubes, losses, augmentation and everything else that is not size stay. A run starts
    from fresh parameters, whatever `init.weights` says.
    """
    depth = config.model.depth
    config.total_steps = 20
    config.optimizer.warmup_steps = 2
    config.log_every_steps = 5
    config.evaluate_every_steps = 0
    config.clip.update(frames=min(40, config.clip.frames), size=64)
    width, tubes = config.model.width, config.model.tubes
    config.model.update(depth=2, width=48, mlp_dim=96, heads=3, dtype="float32")
    if not isinstance(tubes, str):
        config.model.tubes = tuple(
            tube | {"channels": -(-tube["channels"] * 48 // width)}
            if tube.get("channels")
            else tube
            for tube in tubes
        )
    if config.model.gate_after is not None:
        config.model.gate_after = 1
    if config.optimizer.frozen_layers is not None:
        head_only = config.optimizer.frozen_layers == depth
        config.optimizer.frozen_layers = config.model.depth if head_only else 1
    config.init.update({"weights": "", "keep_heads": (), "fresh": ()})
    crowds = {s.head for s in config.streams.values() if s.loss == "sigmoid"}
    for source in (*config.streams.values(), *config.evaluations.values()):
        name = "crowds" if source.head in crowds else f"{source.kind}s"
        source.update(dataset=f"moving_shapes/{name}", batch_size=4)
    for source in config.streams.values():
        source.split = "train"
    for source in config.evaluations.values():
        source.split = "test"
        source.update(temporal_views=1, spatial_views=1)
    return config


def validate(config: ConfigDict) -> None:
    """Finds, before anything is compiled, what cannot work.

    Raises:
      InvalidConfig: lists everything that is wrong.
    """
    if keys := open_keys(config):
        raise InvalidConfig(
            f"These keys are open: {', '.join(keys)}. Training takes them from the run "
            "of config.init.weights; here, set them."
        )
    wrong = [*_wrong_values(config)]
    heads = {s.head for s in config.streams.values() if "head" in s}
    wrong += _wrong_losses(config, heads)
    for name, e in config.evaluations.items():
        if "head" in e and e.head not in heads:
            wrong.append(
                f"evaluations.{name}.head is {e.head!r}, but the streams train "
                f"{', '.join(sorted(heads)) or 'none'}."
            )
        positions = config.model.positions
        if e.get("stride_scale", 1) != 1 and positions in (
            "learned",
            "fixed_no_stride",
        ):
            wrong.append(
                f"evaluations.{name}.stride_scale is {e.stride_scale}, but {positions} "
                "positions fit the tokens of training alone."
            )
    if not wrong:
        wrong += _wrong_layers(config)
    wrong += _wrong_init(config, heads)
    if not wrong and config.optimizer.warmup_steps >= config.total_steps:
        wrong.append(
            f"optimizer.warmup_steps {config.optimizer.warmup_steps} is not below "
            f"total_steps {config.total_steps}."
        )
    if not wrong and config.profile_steps:
        first, last = profiled_steps(config) or (0, 0)
        if not 1 <= first <= last <= config.total_steps:
            wrong.append(
                f"profile_steps is {config.profile_steps!r}: it must be empty or two "
                f"steps, first and last, of 1 to {config.total_steps}, as 10:15."
            )
    if wrong:
        raise InvalidConfig("\n".join(["The configuration cannot work:", *wrong]))


def check_values(config: ConfigDict) -> None:
    """Raises InvalidConfig for values that cannot be, whatever is still open."""
    if wrong := [*_wrong_values(config, still_open=(None, ""))]:
        raise InvalidConfig("\n".join(["The configuration cannot work:", *wrong]))


def _wrong_values(config, still_open=()):
    """Says what values break a rule by themselves; None does, unless it is open."""
    for keys, allowed, rule in _RULES:
        for key in keys:
            value = _lookup(config, key)
            if value not in still_open and (value is None or not allowed(value)):
                yield f"{key} is {value!r}: it must be {rule}."
    if not config.streams:
        yield "streams is empty: there is nothing to train on."
    for section, make in (("streams", stream), ("evaluations", evaluation)):
        known = set(make.__annotations__) - {"return"}
        for name, source in config[section].items():
            where = f"{section}.{name}"
            if extra := set(source) - known:
                yield f"{where} has unknown keys: {', '.join(sorted(extra))}."
            if missing := known - set(source):
                yield f"{where} lacks: {', '.join(sorted(missing))}."
                continue
            for keys, allowed, rule in _SOURCE_RULES:
                for key in keys:
                    value = source.get(key)
                    if key in source and value not in still_open and not allowed(value):
                        yield f"{where}.{key} is {value!r}: it must be {rule}."


def _wrong_layers(config):
    """What the gate and the frozen layers say that cannot be together."""
    options = EncoderOptions.of(config)
    yield from options.conflicts("model.")
    gate, frozen = options.gate_after, config.optimizer.frozen_layers
    layers = options.layers
    if frozen is None:
        return
    if not 0 <= frozen <= layers:
        yield f"optimizer.frozen_layers is {frozen}: the model has {layers} layers."
    if gate is not None and gate < frozen:
        yield (
            f"model.gate_after is {gate}, but optimizer.frozen_layers {frozen}: the "
            "gate would have to be trained through frozen layers. Set it to "
            f"{frozen} or more, or to None."
        )


def _wrong_init(config, heads):
    """What section `init` says that cannot be together."""
    init = config.init
    if init.positions == "keep" and config.model.positions != "learned":
        yield (
            f"init.positions is 'keep', but model.positions {config.model.positions!r} "
            "are not learned."
        )
    if init.head and init.head not in heads:
        yield (
            f"init.head is {init.head!r}, but the streams train "
            f"{', '.join(sorted(heads)) or 'none'}."
        )
    for key in ("fresh", "keep_heads"):
        if init[key] and (not init.weights or is_weights_file(init.weights)):
            yield (
                f"init.{key} is {init[key]!r}, but init.weights {init.weights!r} is "
                "not a run whose parameters could be left out or kept."
            )
    if both := heads.intersection(init.keep_heads):
        yield (
            f"init.keep_heads has {', '.join(sorted(both))}, which the streams train: "
            "leave it out; a head of the same classes goes on from there."
        )
    if is_weights_file(init.weights) and config.model.kernels == "interpolated":
        yield (
            f"init.weights is {init.weights!r}, whose patches no tube can take: "
            "model.kernels is 'interpolated', one kernel of 8x8x8 for all."
        )
    for key, default in (("inflate", "none"), ("head", "")):
        if init[key] != default and not is_weights_file(init.weights):
            yield (
                f"init.{key} is {init[key]!r}, but init.weights {init.weights!r} is no "
                "file of an image ViT's weights (.npz, .safetensors)."
            )


def is_weights_file(path: str) -> bool:
    """Whether `init.weights` names an image ViT's weights rather than a run."""
    return path.endswith((".npz", ".safetensors"))


def _wrong_losses(config, heads):
    """Which heads have several losses: their logits would mean several things."""
    for head in sorted(heads):
        losses = {
            name: s.loss
            for name, s in config.streams.items()
            if s.get("head") == head and "loss" in s
        }
        if len(set(losses.values())) > 1:
            which = ", ".join(f"{loss!r} in {name}" for name, loss in losses.items())
            yield (
                f"head {head!r} has the losses {which}: give the streams one loss or "
                "heads of their own."
            )


def head_loss(config: ConfigDict, head: str) -> str:
    """The loss that a head is trained with: what its logits mean."""
    kept = dict.fromkeys(config.init.keep_heads, "softmax")
    return (kept | {s.head: s.loss for s in config.streams.values()})[head]


def profiled_steps(config: ConfigDict) -> tuple[int, int] | None:
    """(first, last) of the steps to trace; None where `profile_steps` names none."""
    match = re.fullmatch(r"(\d+):(\d+)", config.profile_steps)
    return match and (int(match[1]), int(match[2]))


def _lookup(config, key):
    for part in key.split("."):
        config = config[part]
    return config


def _whole(value):
    return isinstance(value, int) and value >= 1


_RULES = (
    (
        (
            "total_steps",
            "log_every_steps",
            "checkpoint.every_steps",
            "checkpoint.keep",
            "clip.frames",
            "clip.size",
            "loader.threads",
            "loader.prefetch",
            "mesh.slices",
            "optimizer.accumulate_steps",
        ),
        _whole,
        "a whole number of at least 1",
    ),
    (
        ("mesh.data", "mesh.fsdp", "mesh.tensor"),
        lambda x: x == -1 or _whole(x),
        "a whole number of at least 1, or -1",
    ),
    (
        (
            "seed",
            "evaluate_every_steps",
            "optimizer.warmup_steps",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
            "loader.workers",
        ),
        lambda x: x >= 0,
        "at least 0",
    ),
    (("data.test_share",), lambda x: 0 < x < 1, "above 0 and below 1"),
    (
        (
            "clip.fps",
            "data.epochs",
            "optimizer.learning_rate",
            "loader.decode_timeout_seconds",
        ),
        lambda x: x > 0,
        "above 0",
    ),
    (
        (
            "optimizer.beta1",
            "optimizer.beta2",
            "optimizer.ema_decay",
            "loader.max_undecodable",
        ),
        lambda x: 0 <= x < 1,
        "at least 0 and below 1",
    ),
    *(
        ((f"model.{name}",), key.rule.accepts, key.rule.words)
        for name, key in MODEL.items()
        if key.rule
    ),
    *(
        ((key,), choices.__contains__, f"one of {', '.join(choices)}")
        for key, choices in {
            "optimizer.first_moment_dtype": ("float32", "bfloat16"),
            "init.positions": ("drop", "keep"),
            "init.inflate": ("none", "repeat", "central_frame"),
        }.items()
    ),
)
_SOURCE_RULES = (
    (("kind",), lambda x: x in ("image", "video"), "'image' or 'video'"),
    (
        ("batch_size", "temporal_views", "spatial_views"),
        _whole,
        "a whole number of at least 1",
    ),
    (("loss",), lambda x: x in ("softmax", "sigmoid"), "'softmax' or 'sigmoid'"),
    (("mixup", "loss_weight"), lambda x: x >= 0, "at least 0"),
    (("stride_scale",), lambda x: 0.1 <= x <= 10, "between 0.1 and 10"),
    (
        ("randaugment_layers",),
        lambda x: isinstance(x, int) and x >= 0,
        "a whole number of at least 0",
    ),
    (("randaugment_magnitude",), lambda x: 0 <= x <= 10, "between 0 and 10"),
    (
        ("label_smoothing", "color_jitter"),
        lambda x: 0 <= x <= 1,
        "between 0 and 1",
    ),
    (
        ("crop_area",),
        lambda x: isinstance(x, tuple) and len(x) == 2 and 0 < x[0] <= x[1] <= 1,
        "two shares (least, greatest) above 0 and up to 1",
    ),
)


def arguments(given: str, **allowed: tuple[str, ...] | str | bool) -> ConfigDict:
    """Arguments of a config file: "key=value,key=value,switch".

    Args:
      given: as it stands after the colon in --config=FILE:given.
      allowed: for every key a tuple of the values that it may have, the first being the
        default; or a string, the default, where it may have any; or False, for a switch
        that is given without a value.

    Raises:
      InvalidConfig: another key, or another value.
    """
    values = {k: v[0] if isinstance(v, tuple) else v for k, v in allowed.items()}
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        choices = allowed.get(key, ())
        if choices is False and not equals:
            values[key] = True
        elif value and (isinstance(choices, str) or value in (choices or ())):
            values[key] = value
        else:
            takes = []
            for k, v in allowed.items():
                ways = [f"{k}={v or '...'}"] if isinstance(v, str) else [k]
                takes += [f"{k}={x}" for x in v] if isinstance(v, tuple) else ways
            raise InvalidConfig(
                f"The config takes no argument {part!r}; it takes "
                f"{', '.join(takes) or 'none'}."
            )
    return ConfigDict(values)


def message_of(error: Exception) -> str:
    """What ml_collections or a config file raises, in a line."""
    if error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]  # ml_collections wraps it
    if isinstance(error, KeyError):
        what, *nearest = str(error.args[0]).splitlines()
        if len(what.split()) == 1:  # the key alone
            what = f"There is no key {what}."
        return " ".join([what, *nearest])
    *_, last = str(error).strip().splitlines() or [type(error).__name__]
    return last.strip()  # of a file that is not there: its name, after what was tried
