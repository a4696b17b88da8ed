"""Fine-tuning on a folder of clips: completes what a config leaves open.

`configs/finetune.py` leaves open what it cannot know: the model's sizes and tubes, the
data set, the rates, and the number of steps. `complete` fills them in before a run
begins: as a run that it resumes has them, as the model that it starts from has them, or
as `recipe` has them for such weights.
"""

import contextlib
import os
import shlex

from etils import epath

from sparse_tube_vit.checkpoints import image_vits, stored
from sparse_tube_vit.checkpoints.step import NoCheckpoint
from sparse_tube_vit.config import (
    MODEL,
    ConfigDict,
    EncoderOptions,
    InvalidConfig,
    check_values,
    default_config,
    from_json,
    get_key,
    head_loss,
    open_keys,
    set_key,
    validate,
)
from sparse_tube_vit.datasets.preparing.embedded import prepare_embedded
from sparse_tube_vit.datasets.reading import open_split
from sparse_tube_vit.log import log
from sparse_tube_vit.models.variants import make_tubes
from sparse_tube_vit.training import recipe
from sparse_tube_vit.training.folder_dataset import check_folder, prepare_folder

#: Name of the stream and the evaluation of the folder `data.images`.
IMAGES = "images"

#: Steps that a new head needs to learn even a handful of examples.
LEAST_STEPS = 100

#: Open keys of other sections than `clip` and `model`.
_SETTINGS = tuple(key for key in recipe.KEYS if key != "optimizer.video_tubes_rate")

#: Keys for which None is a value, too.
_NONE_IS_A_VALUE = (
    "model.gate_after",
    "model.position_gain",
    "optimizer.video_tubes_rate",
)


def complete(config: ConfigDict, workdir=None, data: bool = True) -> ConfigDict:
    """Returns a copy of the config with all open keys filled in, and valid.

    Open keys are taken from the run in `workdir`, if there is one; else those of `clip`
    and `model` from `init.weights`, a run or an image ViT, and others from `recipe`.
    Folders are prepared below `data_dir`, unless the same files are there already:
    `data.images` for the stream and the evaluation "images", which are removed where no
    such folder is given, `data.folder` for all others without a data set. Open keys
    `flip` follow streams of the same kind in the run resumed or started from.
    `total_steps`, `optimizer.warmup_steps`, `optimizer.head_steps`, `log_every_steps`
    and `checkpoint.every_steps` follow from the number of examples.

    Args:
        config: The config, which is not changed.
        workdir: The work directory of the run; None without one.
        data: Whether the data set is needed; without, what follows from it stays open.

    Raises:
        InvalidConfig: A key stays open, or as `validate`.
        NoCheckpoint: There is no model to take sizes from; and the other named errors
            of `stored.locate`.
        DatasetError: The named errors of listing and preparing the folder.
    """
    config = config.copy_and_resolve_references()
    check_values(config)
    for key in ("folder", "images", "split_list"):  # of a config file, or a notebook
        config.data[key] = os.path.expanduser(config.data[key])
    if not config.data.images:
        _leave_out_images(config)
    _take_settings(config, workdir)
    if data:
        validate(config, data=False)  # before folders are read and prepared
        _take_data_sets(config, workdir)
        _take_flips(config, workdir)
        _take_schedule(config)
    validate(config, data=data)
    return config


def _take_data_sets(config, workdir):
    """Prepares the folders, for streams and evaluations without a data set."""
    begun = ()
    if config.data.folder and (resumed := _resumed(workdir)) is not None:
        before = resumed.read_description()["config"]["streams"].values()
        begun = sorted({stream["dataset"] for stream in before})
    streams, evaluations = (
        {
            name: source
            for name, source in section.items()
            if not source.dataset and not (name == IMAGES and config.data.images)
        }
        for section in (config.streams, config.evaluations)
    )
    if (streams or evaluations) and not config.data.folder:
        raise InvalidConfig(
            f"{', '.join({**streams, **evaluations})} has no data set: give "
            "--config.data.folder=CLIPS, a folder of <class>/<file>."
        )
    if config.data.folder and not (streams or evaluations):
        raise InvalidConfig(
            f"data.folder is {config.data.folder!r}, but all streams and evaluations "
            "have a data set: leave one of them out."
        )
    if config.data.images:
        _check_images(config)
    classes = ()
    if config.data.folder:
        clips = prepare_folder(config, begun=begun if streams else ())
        classes = clips.class_names
        for stream in streams.values():
            stream.update(dataset=clips.dataset, kind=clips.kind, split="train")
        for evaluation in evaluations.values():
            evaluation.update(dataset=clips.dataset, kind=clips.kind, split=clips.test)
            if clips.kind == "image":
                evaluation.update(temporal_views=1, spatial_views=1)
    if config.total_steps is None and (streams or _has_open_schedule(config)):
        _set_steps(config, streams)
    if config.data.images:
        images = prepare_folder(config, IMAGES, classes, begun)
        heads = [s.head for s in streams.values() if images.class_names == classes]
        _add_images(config, images, heads[0] if heads else "")


def _take_schedule(config):
    """Fills in the open keys that follow from the number of steps."""
    if not config.total_steps:
        return
    if config.optimizer.warmup_steps is None:
        config.optimizer.warmup_steps = config.total_steps // 10
    if config.optimizer.head_steps is None:
        steps = recipe.head_steps(config.total_steps, config.optimizer.warmup_steps)
        config.optimizer.head_steps = steps
        log.info("Pooling and head train alone for the first %d steps", steps)
    if config.log_every_steps is None:  # curves of at least 20 points
        most = default_config().log_every_steps
        config.log_every_steps = min(max(config.total_steps // 20, 1), most)
    if config.checkpoint.every_steps is None:  # a fifth of the run can be lost
        most = default_config().checkpoint.every_steps
        config.checkpoint.every_steps = min(-(-config.total_steps // 5), most)


def faster_configs(config: ConfigDict, given: ConfigDict) -> dict[str, ConfigDict]:
    """Returns configs of runs that may be quicker, by the option that leads to them.

    Each changes one thing: smaller clips; of a run from weights, a third of the blocks
    trained, or none, with the clips and tubes that `complete` chooses then; half the
    epochs of a folder; one view along time for several.

    Args:
        config: What `complete` returned.
        given: The config before `complete`.

    Raises:
        UnreachableStorage: That of the weights does not answer.
    """
    configs = {}

    def changed(option):
        configs[option] = config.copy_and_resolve_references()
        return configs[option]

    patch = recipe.patch_of(make_tubes(config.model.tubes))
    if (size := config.clip.size * 3 // 4 // patch[1] * patch[1]) >= 3 * patch[1]:
        changed(f"clip.size={size}").clip.size = size
    weights = given.init.weights
    of_image_vit = bool(weights) and image_vits.holds_image_vit(weights)
    for trained in (EncoderOptions.of(config).layers // 3, 0) if weights else ():
        what = "" if trained else " (pooling and heads alone)"
        fewer = changed(f"optimizer.trained_layers={trained}{what}")
        fewer.optimizer.update(trained_layers=trained, head_steps=0)
        if of_image_vit:
            values = recipe.from_image_vit(given, patch, trained)
            for key in _fill(given.copy_and_resolve_references(), values):
                set_key(fewer, key, values[key])
    if given.total_steps is None and config.total_steps:
        epochs, total = max(config.data.epochs // 2, 1), config.total_steps
        steps = max(-(-total * epochs // config.data.epochs), LEAST_STEPS)
        shorter = changed(f"data.epochs={epochs}")
        shorter.total_steps = steps
        shorter.optimizer.head_steps = config.optimizer.head_steps * steps // total
    for name, evaluation in config.evaluations.items():
        if evaluation.temporal_views > 1:
            one = changed(f"evaluations.{name}.temporal_views=1")
            one.evaluations[name].temporal_views = 1
    return configs


def _take_settings(config, workdir):
    """Fills in the open keys of models, clips, rates and initial parameters."""
    keys = [key for key in _SETTINGS if get_key(config, key) is None]
    if not (keys := [*open_keys(config), *keys]):
        return
    if (resumed := _resumed(workdir)) is not None:
        before = from_json(resumed.read_description()["config"])
        _fill(config, {key: get_key(before, key) for key in [*keys, *_NONE_IS_A_VALUE]})
        _log_model(config, resumed.name)
        return
    takes_sizes = bool(open_keys(config))
    theirs, defaults, source = _values(config, takes_sizes)
    values = theirs | defaults
    if config.model.positions is not None:
        values.pop("model.position_gain", None)
    values = {key: values[key] for key in [*keys, *_NONE_IS_A_VALUE] if key in values}
    filled = _fill(config, values)
    if takes_sizes:
        _log_model(config, source)
    if defaulted := [key for key in filled if key in defaults]:
        settings = [(key, str(get_key(config, key))) for key in defaulted]
        lines = [f"\n  --config.{key}={shlex.quote(x)}" for key, x in settings]
        log.info("Defaults for fine-tuning, where none was set:%s", "".join(lines))


def _values(config, takes_sizes):
    """Returns values by key, of `init.weights` and of `recipe`, and a source in words.

    Args:
        config: The config.
        takes_sizes: Whether clips and model are to be those of the weights.
    """
    weights, trained = config.init.weights, config.optimizer.trained_layers
    if weights and image_vits.holds_image_vit(weights):
        image = image_vits.read(weights, config.init.normalization)
        theirs = {f"model.{k}": key.default for k, key in MODEL.items()}
        theirs |= {f"model.{key}": x for key, x in image.model.items()}
        defaults = recipe.from_image_vit(config, image.patch, trained)
        return theirs, defaults, image.source
    if not takes_sizes:
        return {}, recipe.from_run(trained), "the config"
    if not weights:
        raise InvalidConfig(
            "Name a run, a release or an image ViT with --config.init.weights, or set "
            f"what is taken from it: these are open: {', '.join(open_keys(config))}."
        )
    model = stored.locate(weights)
    before = from_json(model.read_description()["config"])
    theirs = {
        f"{section}.{key}": x
        for section in ("clip", "model")
        for key, x in before[section].items()
    }
    positions = config.model.positions or before.model.positions
    learned = positions == before.model.positions == "learned"
    return theirs, recipe.from_run(trained, learned), model.name


def _fill(config, values):
    """Sets those keys that are open; returns their names."""
    filled = []
    for key, value in values.items():
        if get_key(config, key) is None and value is not None:
            set_key(config, key, value)
            filled.append(key)
    return filled


def _log_model(config, source):
    clip = config.clip
    log.info(
        "Clips of %d frames at %g fps, %dx%d pixels; a model of %d layers of width %d, "
        "as in %s",
        clip.frames,
        clip.fps,
        clip.size,
        clip.size,
        config.model.depth,
        config.model.width,
        source,
    )


def _leave_out_images(config):
    """Removes the stream and evaluation of `data.images`, where there are none."""
    for section in (config.streams, config.evaluations):
        if IMAGES in section and not section[IMAGES].dataset and len(section) > 1:
            del section[IMAGES]


def _check_images(config):
    """Raises an error if there is no stream for `data.images`, or no such folder."""
    if IMAGES not in config.streams or config.streams[IMAGES].dataset:
        raise InvalidConfig(
            f"config.data.images is {config.data.images!r}, but the config has no "
            f"stream {IMAGES!r} without a data set; configs/finetune.py has one."
        )
    check_folder(config, IMAGES)


def _add_images(config, images, head):
    """Makes `data.images` the data set of the stream and evaluation of that name.

    Args:
        config: The config, which is changed.
        images: The data set of `data.images`.
        head: The head of the same classes; "" if there is none.
    """
    stream = config.streams[IMAGES]
    stream.update(dataset=images.dataset, split="train")
    stream.head = head or stream.head
    log.info(
        "%s trains jointly with the clips, with head %s",
        config.data.images,
        stream.head,
    )
    if IMAGES in config.evaluations:
        config.evaluations[IMAGES].update(
            dataset=images.dataset, split=images.test, head=stream.head
        )


def _take_flips(config, workdir):
    """Fills in the open keys `flip`: as in streams of the same kind before."""
    streams = {k: s for k, s in config.streams.items() if s.flip is None}
    if not streams:
        return
    source, run = _run_before(config, workdir)
    before = from_json(run["config"]).streams.values() if run else ()
    for name, stream in streams.items():
        # Without flips of one of them, the model may tell left from right.
        stream.flip = all(s.flip for s in before if s.kind == stream.kind)
        as_in = f", as in {source}" if run else ""
        log.info("streams.%s.flip is %s%s", name, stream.flip, as_in)


def kept_heads(config: ConfigDict, workdir) -> dict[str, tuple[str, ...]]:
    """Returns the class names of the heads of `init.keep_heads`.

    Raises:
        InvalidConfig: The model to start from lacks such a head, or it is multi-label.
        TubeViTError: The named errors of `stored.locate`.
    """
    heads = config.init.keep_heads
    if not heads:
        return {}
    _, run = _run_before(config, workdir)
    theirs = run["class_names"] if run else {}
    if missing := [head for head in heads if head not in theirs]:
        raise InvalidConfig(
            f"config.init.keep_heads has {', '.join(missing)}, but the heads of "
            f"{config.init.weights} are {', '.join(theirs) or 'none'}."
        )
    before = from_json(run["config"])
    if several := [head for head in heads if head_loss(before, head) != "softmax"]:
        raise InvalidConfig(
            f"config.init.keep_heads has {', '.join(several)}, whose inputs have any "
            "number of labels: only heads with one label an input can be kept."
        )
    return {head: tuple(theirs[head]) for head in heads}


def _run_before(config, workdir):
    """Returns name and description of the model to resume or start from, or Nones."""
    source = _resumed(workdir)
    if source is None:
        weights = config.init.weights
        if not weights or image_vits.holds_image_vit(weights):
            return None, None
        source = stored.locate(config.init.weights)
    return source.name, source.read_description()


def _resumed(workdir):
    """Returns the run in a work directory, or None."""
    if workdir is not None:
        with contextlib.suppress(NoCheckpoint):
            return stored.locate(epath.Path(workdir) / "checkpoints")
    return None


def _has_open_schedule(config):
    o, checkpoint = config.optimizer, config.checkpoint
    keys = (o.warmup_steps, o.head_steps, config.log_every_steps)
    return None in (*keys, checkpoint.every_steps)


def _set_steps(config, of_folder):
    """Sets the number of steps to `epochs` passes over a data set.

    Args:
        config: The config, which is changed.
        of_folder: Streams of the folder. Without them it is the first stream's data
            set, but for that of `data.images`.
    """
    others = {k: s for k, s in config.streams.items() if k != IMAGES}
    if not (streams := of_folder or others or config.streams):
        return
    first, *_ = streams.values()
    prepare_embedded([first.dataset], config.data_dir)
    split = open_split(first.dataset, first.split, config.data_dir, first.kind)
    same = [s for s in config.streams.values() if s.dataset == first.dataset]
    batch = sum(stream.batch_size for stream in same)
    steps = -(-config.data.epochs * len(split) // batch)
    config.total_steps = max(steps, LEAST_STEPS)
    log.info(
        "%d steps of %d: %d epochs of %d %ss, and at least %d steps",
        config.total_steps,
        batch,
        config.data.epochs,
        len(split),
        split.kind,
        LEAST_STEPS,
    )
