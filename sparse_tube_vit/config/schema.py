"""Schema of a configuration: every key with its default, rule and meaning.

A file in `configs/` starts from `default_config()` and sets what differs. The config is
locked, so that setting an unknown key is an error.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping

from ml_collections import ConfigDict, config_dict

from sparse_tube_vit.config.keys import (
    COUNT,
    DTYPE,
    NAME,
    NOT_NEGATIVE,
    POSITIVE,
    RATE,
    REQUIRED,
    SHARE,
    SWITCH,
    TEXT,
    TEXTS,
    InvalidConfig,
    Key,
    Rule,
    between,
    one_of,
    whole,
)
from sparse_tube_vit.config.model import MODEL

WORKERS = whole(0, 1000)
AXIS_SIZE = Rule(lambda x: x == -1 or COUNT.accepts(x), f"{COUNT.words}, or -1")

#: Keys by name, and sections of keys, whose names are joined by dots.
SCHEMA = {
    "seed": Key(0, "Seed of all random numbers.", whole(0, 2**32 - 1)),
    "total_steps": Key(None, "Number of training steps.", COUNT, value_type=int),
    "data_dir": Key("data", "Directory or URL of the prepared data sets.", TEXT),
    # Your clips or images to fine-tune on, see training.finetuning.
    "data": {
        "folder": Key(
            "", "Folder of your files, <class>/<file>, to fine-tune on.", TEXT
        ),
        "split_list": Key(
            "", "File of `relative/path,split` lines that splits the folder.", TEXT
        ),
        "images": Key(
            "",
            "Folder of your images, <class>/<file>, to train on beside the clips.",
            TEXT,
        ),
        "test_share": Key(
            0.2,
            "Fraction of every class that is held out where nothing splits the folder.",
            Rule(lambda x: 0 < x < 1, "above 0 and below 1"),
        ),
        "epochs": Key(
            30,
            "Passes over the folder, or the first stream's data set, that make "
            "total_steps where it is None. Open in configs/finetune.py: 10 from an "
            "image ViT.",
            POSITIVE,
        ),
    },
    # Input of the model. An image is one frame.
    "clip": {
        "frames": Key(32, "Frames of a clip.", whole(1, 10_000)),
        "fps": Key(15.0, "Frames per second of a clip.", POSITIVE),
        "size": Key(224, "Height and width in pixels.", whole(1, 10_000)),
    },
    "model": MODEL,
    # Initial parameters of a run that does not resume, see checkpoints.pretrained.
    "init": {
        "weights": Key(
            "",
            "Weights to start from: an image ViT's .npz or .safetensors file or folder "
            "of the Hub, a run's work directory or checkpoint, or a release. Empty: "
            "random parameters.",
            TEXT,
        ),
        "normalization": Key(
            "",
            "Normalization of an image ViT's inputs: half, imagenet or clip, by their "
            "mean and standard deviation. Empty: as its files tell.",
            one_of("", "half", "imagenet", "clip"),
        ),
        "positions": Key(
            "drop",
            "Position embeddings of an image ViT, or learned for another grid: drop "
            "them, or keep them, resized.",
            one_of("drop", "keep"),
        ),
        "inflate": Key(
            "none",
            "Kernels of tubes of several frames from the 2-D patches of the weights: "
            "none, repeat on all frames, or on the central_frame only.",
            one_of("none", "repeat", "central_frame"),
        ),
        "head": Key("", "Head that takes an image ViT's classifier.", TEXT),
        "keep_heads": Key(
            (),
            "Heads of the run in `weights` that are kept, frozen.",
            TEXTS,
        ),
        "fresh": Key(
            (),
            'Parts of the parameters, by path as ("stem",), that are not loaded.',
            TEXTS,
        ),
    },
    # Name -> stream(...) and evaluation(...), see STREAM and EVALUATION.
    "streams": {},
    "evaluations": {},
    # Adam with decoupled weight decay on kernels, linear warm-up, cosine decay to 0.
    "optimizer": {
        "learning_rate": Key(5e-5, "Peak learning rate.", POSITIVE),
        "layer_decay": Key(
            1.0,
            "Layer-wise decay of the learning rate: the factor from a block to the one "
            "below it; pooling and heads have the whole rate. 1: no decay.",
            Rule(lambda x: 0 < x <= 1, "above 0 and up to 1"),
        ),
        "trunk_rate": Key(
            1.0,
            "Learning rate of tubes, positions, pretrained blocks and the encoder's "
            "norm, as a fraction of that of fresh blocks, pooling and heads.",
            Rule(lambda x: 0 < x <= 1, "above 0 and up to 1"),
        ),
        "video_tubes_rate": Key(
            None,
            "Learning rate of tubes of several frames and of model.position_gain, as a "
            "fraction of learning_rate. None: as other tubes.",
            Rule(lambda x: x is None or 0 <= x <= 1, "None, or between 0 and 1"),
            value_type=float,
        ),
        "head_steps": Key(
            0,
            "First steps, in which pooling, heads and fresh blocks alone train, at a "
            "fraction of the time; the rest warms up after them.",
            whole(0),
        ),
        "warmup_steps": Key(10_000, "Steps of linear warm-up from 0.", whole(0)),
        "weight_decay": Key(0.001, "Decoupled weight decay of kernels.", NOT_NEGATIVE),
        "beta1": Key(0.9, "Adam's decay of the first moment.", RATE),
        "beta2": Key(0.999, "Adam's decay of the second moment.", RATE),
        "clip_norm": Key(
            1.0, "Largest global norm of the gradient; 0: not clipped.", NOT_NEGATIVE
        ),
        "first_moment_dtype": Key(
            "float32", "Dtype of Adam's first moment; bfloat16 saves memory.", DTYPE
        ),
        "accumulate_steps": Key(
            1, "Parts that a batch is split into; their gradients are summed.", COUNT
        ),
        "ema_decay": Key(
            0.0, "Decay of the parameters' moving average; 0: no average.", RATE
        ),
        "trained_layers": Key(
            None,
            "Last blocks that train; what is below them, tubes and positions included, "
            "is frozen. 0: pooling and heads alone. None: everything trains.",
            Rule(lambda x: x is None or x >= 0, "None, or at least 0"),
            value_type=int,
        ),
    },
    # Mesh of devices; -1: all remaining devices.
    "mesh": {
        "data": Key(-1, "Devices over which batches are split.", AXIS_SIZE),
        "fsdp": Key(
            1, "Devices over which batches and parameters are split.", AXIS_SIZE
        ),
        "tensor": Key(
            1, "Devices over which heads and hidden units are split.", AXIS_SIZE
        ),
        "slices": Key(1, "Slices of a pod that the data axis spans.", COUNT),
    },
    "compilation_cache": Key(
        "",
        "Directory, local or gs://, that keeps compiled programs for the next start; "
        "of several hosts the first alone writes. Empty: JAX_COMPILATION_CACHE_DIR.",
        TEXT,
    ),
    "loader": {
        "workers": Key(
            None,
            "Processes a stream that decode; 0: threads. None: the cores that the main "
            "process does not need, divided by the measured cost of each stream's "
            "examples; threads where few are left, or the model computes on the CPU.",
            Rule(
                lambda x: x is None or WORKERS.accepts(x), f"None, or {WORKERS.words}"
            ),
            value_type=int,
        ),
        "shares": Key(
            "",
            "Ratio by which the processes are divided among all streams, as "
            '"video=8,image=1", where workers is None. Empty: by the measured cost.',
            TEXT,
        ),
        "threads": Key(
            2, "Threads a stream that decode, without processes.", whole(1, 1000)
        ),
        "prefetch": Key(
            4,
            "Batches that are read ahead; at least a device's part a process.",
            whole(1, 1000),
        ),
        "max_undecodable": Key(
            0.01,
            "Fraction of a stream's examples that may fail to decode before the run "
            "stops.",
            RATE,
        ),
        "decode_timeout_seconds": Key(
            60.0, "CPU seconds after which a clip counts as undecodable.", POSITIVE
        ),
        # A clip beyond one of these limits counts as undecodable too.
        "read_timeout_seconds": Key(
            600.0,
            "Seconds by the clock that opening a clip, or reading a packet, may take.",
            POSITIVE,
        ),
        "max_frame_pixels": Key(
            2**27, "Pixels that a frame may have; 8K has 33 million.", COUNT
        ),
        "max_packets": Key(
            2**20,
            "Encoded frames that a clip may have; an hour at 60 fps has 216,000.",
            COUNT,
        ),
        "max_file_bytes": Key(2**34, "Bytes that a clip's file may have.", COUNT),
    },
    "log_every_steps": Key(50, "Steps between two logged metrics.", COUNT),
    "evaluate_every_steps": Key(
        0, "Steps between two evaluations; 0: at the end only.", whole(0)
    ),
    "peak_flops": Key(
        None,
        "FLOPs a second of one device at its peak, of which the MFU is the share that "
        "the model's take. None: in bfloat16, where the kind of device is known.",
        Rule(lambda x: x is None or POSITIVE.accepts(x), f"None, or {POSITIVE.words}"),
        value_type=float,
    ),
    "profile_steps": Key(
        "",
        "First and last step that the first host traces for XProf, as 10:15.",
        TEXT,
    ),
    "checkpoint": {
        "every_steps": Key(1000, "Steps between two checkpoints.", COUNT),
        "keep": Key(3, "Number of latest checkpoints that are kept.", COUNT),
        "release": Key(
            False, "Writes the last checkpoint as the release WORKDIR/release.", SWITCH
        ),
    },
}

_SOURCE = {
    "kind": Key(
        REQUIRED, "Kind of the examples, image or video.", one_of("image", "video")
    ),
    "dataset": Key(REQUIRED, 'Data set below data_dir, such as "ucf101/split1".', TEXT),
    "head": Key(
        REQUIRED,
        'Name of the classifier of the examples, such as "ucf101".',
        NAME,
    ),
    "batch_size": Key(
        REQUIRED,
        "Examples a step, over all hosts.",
        whole(1, 2**20),
    ),
}

#: Keys of each of `streams`, the sources of training examples.
STREAM = {
    **_SOURCE,
    "split": Key("train", "Split of the data set.", TEXT),
    "loss": Key(
        "softmax",
        "Cross entropy of a softmax, where one class is correct, or of a sigmoid for "
        "every class, where any number are.",
        one_of("softmax", "sigmoid"),
    ),
    "labels": Key(
        "video",
        "Labels of an example: all of its video's, or those of the actions that the "
        "sampled clip shows, where the data set stores their times (charades).",
        one_of("video", "clip"),
    ),
    "loss_weight": Key(
        1.0, "Weight of the mean loss in the sum that is minimized.", NOT_NEGATIVE
    ),
    "label_smoothing": Key(
        0.0,
        "Fraction of a target that is uniform over classes (softmax), or over present "
        "and absent of every class (sigmoid).",
        SHARE,
    ),
    "mixup": Key(0.0, "Alpha of mixup's Beta distribution; 0: no mixup.", NOT_NEGATIVE),
    "crop_area": Key(
        (0.3, 1.0),
        "Least and greatest fraction of the frame that a random crop covers.",
        Rule(
            lambda x: isinstance(x, tuple) and len(x) == 2 and 0 < x[0] <= x[1] <= 1,
            "two shares (least, greatest) above 0 and up to 1",
        ),
    ),
    "flip": Key(
        True,
        "Random horizontal flips; False where classes tell left from right.",
        SWITCH,
    ),
    "color_jitter": Key(0.0, "Strength of the colour jitter.", SHARE),
    "randaugment_layers": Key(
        0, "RandAugment operations on an example; the paper has 2.", whole(0)
    ),
    "randaugment_magnitude": Key(
        10.0, "Magnitude of the RandAugment operations.", between(0, 10)
    ),
}

#: Keys of each of `evaluations`: Top-1 and Top-5, or mAP of multi-label data sets.
EVALUATION = {
    **_SOURCE,
    "batch_size": Key(
        REQUIRED,
        "Examples at a time, over all hosts; fewer where their views take more than a "
        "GiB of a host.",
        whole(1, 2**20),
    ),
    "split": Key("test", "Split of the data set.", TEXT),
    "temporal_views": Key(
        1,
        "Clips of a video, spread evenly from its beginning to its end.",
        whole(1, 1000),
    ),
    "spatial_views": Key(
        1, "Square crops, spread evenly along the longer side.", whole(1, 1000)
    ),
    "combine_views": Key(
        "mean",
        "Combination of the views' probabilities, mean or maximum.",
        one_of("mean", "max"),
    ),
    "stride_scale": Key(
        1.0,
        "Scale of the tubes' strides: below 1 gives more tokens than in training, "
        "above 1 fewer (paper table 7d).",
        between(0.1, 10),
    ),
}

#: Keys of `EVALUATION` that are of videos alone: an image has one view.
VIEWS = ("temporal_views", "spatial_views", "combine_views")

#: Schemas of the sections whose entries a config file names.
SOURCES = {"streams": STREAM, "evaluations": EVALUATION}


def default_config() -> ConfigDict:
    """Returns a config with every key at its default, without streams."""
    config = _section(SCHEMA)
    config.lock()
    for name in SOURCES:
        config[name].unlock()
    return config


def _section(schema) -> ConfigDict:
    section = ConfigDict()
    for name, key in schema.items():
        if isinstance(key, Mapping):
            section[name] = _section(key)
            continue
        if key.value_type:
            section[name] = config_dict.placeholder(key.value_type)
        if key.default is not None:
            section[name] = key.default
    return section


def stream(**values) -> ConfigDict:
    """Returns one source of training examples; a batch of it takes part in every step.

    Args:
        **values: Values of the keys of `STREAM`.

    Raises:
        InvalidConfig: A key is unknown, or a required one is missing.
    """
    return _source("stream", STREAM, values)


def evaluation(**values) -> ConfigDict:
    """Returns one evaluation: scores over temporal x spatial views, combined.

    Args:
        **values: Values of the keys of `EVALUATION`.

    Raises:
        InvalidConfig: A key is unknown, or a required one is missing.
    """
    return _source("evaluation", EVALUATION, values)


def _source(what, schema, values) -> ConfigDict:
    if wrong := [*wrong_keys(what, schema, values)]:
        raise InvalidConfig(" ".join(wrong))
    defaults = {k: key.default for k, key in schema.items()}
    return ConfigDict(defaults | values)


def wrong_keys(
    where: str, schema: Mapping[str, Key], names: Iterable[str], complete: bool = False
) -> Iterator[str]:
    """Yields which keys of a stream or evaluation are unknown or missing.

    Args:
        where: Name of the stream or evaluation, for the message.
        schema: Its keys.
        names: Names of the keys that it has.
        complete: Whether it must have all keys, not only those without a default.
    """
    if unknown := sorted(set(names) - set(schema)):
        hints = []
        for name in unknown:
            nearest = difflib.get_close_matches(name, schema, 1)
            hints += [f"{name} (did you mean {n}?)" for n in nearest] or [name]
        yield f"{where} has unknown keys: {', '.join(hints)}."
    needed = [
        name for name, key in schema.items() if complete or key.default is REQUIRED
    ]
    if missing := sorted(set(needed) - set(names)):
        yield f"{where} lacks: {', '.join(missing)}."


def leaves(schema: Mapping, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yields (name with dots, key) for every key of a schema.

    Args:
        schema: Keys by name, and sections of keys.
        prefix: Put before every name.
    """
    for name, key in schema.items():
        if isinstance(key, Key):
            yield f"{prefix}{name}", key
        else:
            yield from leaves(key, f"{prefix}{name}.")


def leave_open(section: ConfigDict, keys: Iterable[str]) -> None:
    """Sets keys to None, keeping their types; `finetuning.complete` fills them in."""
    for key in keys:
        section[key] = config_dict.placeholder(section.get_type(key))


def input_size(clip: ConfigDict, kind: str) -> tuple[int, int, int]:
    """Returns (T, H, W) in frames and pixels of a model's inputs of a kind.

    Args:
        clip: `clip` of a config.
        kind: "video", or "image", which has one frame.
    """
    return (clip.frames if kind == "video" else 1, clip.size, clip.size)


def open_keys(config: ConfigDict) -> list[str]:
    """Returns the keys of clips and model that are None and need a value."""
    return [
        f"{section}.{name}"
        for section in ("clip", "model")
        for name, value in config[section].items()
        if value is None and SCHEMA[section][name].default is not None
    ]


def differences(before: Mapping, now: Mapping, prefix: str = ""):
    """Yields (key, before, now) for every leaf in which two nested dicts differ."""
    for key in sorted(before.keys() | now.keys()):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


#: Suffixes of files of weights that are pickles, which are refused with advice.
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".tar", ".pkl")

#: Suffixes of files of weights, whether they are read or refused.
WEIGHTS_SUFFIXES = (".npz", ".safetensors", ".json", ".msgpack", ".h5", *PICKLES)


def get_key(config: ConfigDict, key: str):
    """Returns the value of a key, by its name with dots: "model.width"."""
    for part in key.split("."):
        config = config[part]
    return config


def set_key(config: ConfigDict, key: str, value) -> None:
    """Sets a key by its name with dots; a config refuses one that it lacks."""
    section, _, name = key.rpartition(".")
    (get_key(config, section) if section else config)[name] = value


def message_of(error: Exception) -> str:
    """Returns an error of ml_collections or of a config file in one line."""
    if error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]  # ml_collections wraps it
    if isinstance(error, KeyError):
        what, *nearest = str(error.args[0]).splitlines()
        if len(what.split()) == 1:  # only the key
            what = f"There is no key {what}."
        return " ".join([what, *nearest])
    *_, last = str(error).strip().splitlines() or [type(error).__name__]
    return last.strip()  # for a missing file its name, after the places searched
