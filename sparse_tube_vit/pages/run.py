"""A run as one HTML page."""

import collections
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from sparse_tube_vit import figures
from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.checkpoints.evaluations import (
    accuracies_in_words,
    tokens_in_words,
    views_in_words,
)
from sparse_tube_vit.config import (
    default_config,
    differences,
    evaluation,
    from_json,
    stream,
)
from sparse_tube_vit.datasets import manifest, reading
from sparse_tube_vit.datasets.classes import ClassNamesDiffer, check_classes
from sparse_tube_vit.datasets.times import SPAN
from sparse_tube_vit.errors import DatasetError
from sparse_tube_vit.figures.run import (
    ABSENT,
    KINDS,
    NothingToDraw,
    Picture,
    Run,
    labels_of,
)
from sparse_tube_vit.input import examples
from sparse_tube_vit.pages import html
from sparse_tube_vit.storage import UnreachableStorage
from sparse_tube_vit.training.description import describe
from sparse_tube_vit.training.reporting import PARTS, TRAINING, training_metrics
from sparse_tube_vit.training.utilization import examples_per_second, in_flops, in_gib
from sparse_tube_vit.video import inspection
from sparse_tube_vit.video.conversion import Crop
from sparse_tube_vit.video.decode import decode
from sparse_tube_vit.video.limits import UndecodableClip
from sparse_tube_vit.video.transcode import Transcode

#: Most classes in the table of the worst ones.
WORST = 10
#: Most undecodable examples that are listed by name.
NAMED = 50

# Videos on the page are for a look alone: small files matter more than quality, and of
# long ones the middle is shown.
_SHOWN_SECONDS = 10.0
_SAMPLE = Transcode(short_side=144, gop=60, crf=30)
_ANIMATION = Transcode(short_side=480, gop=60, crf=26)


def render(run: Run, clips: int) -> str:
    """Returns the page of a run, or of a model alone, as HTML.

    Args:
        run: A work directory with a checkpoint, or a release.
        clips: Examples shown of every evaluation, with their predictions.

    Raises:
        NothingToDraw: It is an image ViT, which was never trained here.
        TubeViTError: As `load`.
    """
    if not run.config.streams:
        raise NothingToDraw(
            f"{run.model} is an image ViT; a page is of a run, or of a release. "
            "`figures attention --clip FILE` draws it."
        )
    sections = {
        "Accuracy": _accuracy(run),
        "Classes": _classes(run),
        "Curves": _pictures(run, "curves", "training_curves"),
        "Samples": _samples(run, clips),
        "Tubes": _tubes(run),
        "Kernels": _pictures(run, "kernels"),
        "Positions": _pictures(run, "positions"),
        "Attention": _pictures(run, "attention"),
        "Configuration": _configuration(run),
        "Throughput": _throughput(run),
        "Data": _data(run),
    }
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in sections)
    body = [f"<ul>{html.items(_summary(run))}</ul>", f"<nav>{links}</nav>"]
    for name, lines in sections.items():
        inside = "\n".join(lines)
        body.append(f'<section id="{name}"><h2>{name}</h2>\n{inside}</section>')
    title = f"Run {run.workdir.resolve().name}" if run.workdir else run.trained.name
    return html.page(title, "\n".join(body), _STYLE)


def _summary(run) -> Iterator[str]:
    trained = run.trained
    count = sum(x.size for x in jax.tree.leaves(trained.params))
    averaged = ", averaged over training" if trained.averaged else ""
    for e in run.evaluations.values():
        yield f"{_name(e)}: {accuracies_in_words(e)} of {e['examples']:,} {e['kind']}s"
    yield f"Step {trained.step:,} of {run.config.total_steps:,}"
    yield f"{count:,} parameters{averaged}"
    for head, names in trained.class_names.items():
        yield f"Head {head}: {len(names):,} classes"
    yield f"{run.model}"


def _name(e: dict) -> str:
    """Returns an evaluation's name, with what several of the same name differ in."""
    name = e["evaluation"]
    if e["kind"] == "video":
        name += f", {views_in_words(e)} views"
    if e["stride_scale"] != 1:
        name += f", {tokens_in_words(e)}"
    return f"{name}, step {e['step']:,}"


# ---- pictures


def _pictures(run, kind, name=None):
    """Yields the pictures of a kind, or the one of a name, or why there is none."""
    shown = False
    try:
        for picture in KINDS[kind](run):
            if name in (None, picture.name):
                yield _shown(picture)
                shown = True
    except (DatasetError, UndecodableClip) as error:
        yield _absent(f"There is no clip to draw on: {error}")
    else:
        if not shown and kind in ABSENT:
            yield _absent(ABSENT[kind])


def _shown(picture: Picture) -> str:
    """Returns HTML of a picture, an animation as a video, a wide figure scrolling."""
    drawn = picture.drawn
    if not isinstance(drawn, Figure):
        with tempfile.TemporaryDirectory() as directory:
            gif = Path(directory) / "animation.gif"
            figures.save(drawn, gif)
            mp4 = _ANIMATION(gif.read_bytes())
        return f'<div class="moving">{_video(mp4, picture.caption)}</div>'
    file, kind = io.BytesIO(), "png"
    if picture.photographic:  # many times smaller so
        drawn.canvas.draw()
        pixels = np.asarray(drawn.canvas.buffer_rgba())[..., :3]
        Image.fromarray(pixels).save(file, "WEBP", quality=90)
        kind = "webp"
    else:
        drawn.savefig(file, format="png")
    width = round(drawn.get_figwidth() * 90)
    return (
        f'<div class="scroll"><div class="drawn" style="--width: {width}px">'
        f"{html.picture(file.getvalue(), kind, picture.caption)}</div></div>"
    )


def _video(mp4: bytes, label: str) -> str:
    def whole(height, width):
        return Crop(0, 0, height, width, height, width)

    first = decode(mp4, lambda duration: np.zeros(1), whole)[0][0]
    return html.video(mp4, _still(first), label)


def _still(frame: np.ndarray) -> bytes:
    height, width = frame.shape[:2]
    scale = max(1, 160 / min(height, width))
    return html.jpeg(frame, (round(width * scale), round(height * scale)))


def _absent(why: str) -> str:
    return f'<p class="absent">{html.escape(why)}'


# ---- sections


def _configuration(run):
    step = run.trained.step if run.workdir else None
    saved = stored.locate(run.model, step).read_description()
    # As it was trained: the loaded config is changed to suit this device.
    config = json.loads(from_json(saved["config"]).to_json())
    rows = [
        (key, *("" if value is None else json.dumps(value) for value in values))
        for key, *values in differences(_defaults(config), config)
    ]
    yield "<p>What differs from the defaults."
    yield html.table(("key", "default", "here"), rows)
    everything = html.escape(json.dumps(config, indent=1))
    yield html.details("All of it", f"<pre>{everything}</pre>")
    versions = html.table(("package", "version"), saved["versions"].items())
    yield html.details("Versions that it was saved with", versions)


def _defaults(config: dict) -> dict:
    """Returns the default config, with defaults of as many streams and evaluations."""
    defaults = json.loads(default_config().to_json())
    required = {"kind": "", "dataset": "", "head": "", "batch_size": 1}
    for section, make in (("streams", stream), ("evaluations", evaluation)):
        whole = json.loads(make(**required).to_json())
        optional = {k: v for k, v in whole.items() if k not in required}
        defaults[section] = {name: optional for name in config[section]}
    return defaults


def _accuracy(run):
    if not run.evaluations:
        yield _absent(
            "No evaluation yet. It comes with the last step, or from "
            f"sparse-tube-vit evaluate --model {run.model}"
            if run.workdir
            else "A model alone has no evaluations; see its card, or evaluate it: "
            f"sparse-tube-vit evaluate --model {run.model}"
        )
        return
    protocol = ("examples", "views", "clip", "tokens", "undecodable", "step")
    rows = []
    for e in run.evaluations.values():
        views, clip = "1", f"{e['size']}x{e['size']}"
        if e["kind"] == "video":
            views = views_in_words(e)
            if e["videos_with_fewer_views"]:
                views += f", {e['mean_distinct_views']:.2f} distinct"
            clip = f"{e['frames']} frames at {e['fps']:g} fps, {clip}"
        rows.append(
            (
                e["evaluation"],
                accuracies_in_words(e),
                f"{e['dataset']} {e['split']}",
                f"{e['examples']:,} {e['kind']}s",
                views,
                clip,
                tokens_in_words(e).replace(" tokens", ""),
                len(e["undecodable"]),
                f"{e['step']:,}",
            )
        )
    yield html.table(("evaluation", "accuracy", "data", *protocol), rows)
    yield (
        "<p>Scores are averaged over views, or their maximum where it says so. "
        "What does not decode counts as wrong."
    )
    for picture in KINDS["tokens"](run):
        yield _shown(picture)


def _classes(run):
    if not run.evaluations:
        yield _absent("No evaluation yet.")
    pictures = {picture.name: picture for picture in KINDS["confusion"](run)}
    for name, e in run.evaluations.items():
        yield f"<h3>{html.escape(_name(e))}</h3>"
        if picture := pictures.get(f"{name}_confusion"):
            yield _shown(picture)
        else:
            yield _absent("No confusion matrix: examples have several labels.")
        head, rows = _by_accuracy(e)
        if len(rows) > WORST:
            yield f"<p>The {WORST} worst of {len(rows):,} classes"
        else:
            yield "<p>All classes, the worst first"
        yield html.table(head, rows[:WORST], numbers=2)


def _by_accuracy(e: dict):
    """Returns (head, rows) of a table of classes, the lowest accuracy first."""
    key, title = ("top1", "Top-1") if "confusion" in e else ("average_precision", "AP")
    names = list(e["per_class"])
    rows = []
    for i, (name, of_class) in enumerate(e["per_class"].items()):
        if of_class[key] is None:  # the class has no example
            continue
        mistaken = ""
        if "confusion" in e:
            others = np.array(e["confusion"][i])
            others[i] = 0
            most = others.argmax()
            if others[most]:
                mistaken = f"{names[most]} ({others[most]})"
        rows.append((of_class[key], name, mistaken, of_class["count"]))
    rows.sort(key=lambda row: row[0])
    head = ("class", "mostly taken for", title, "examples")
    return head, [(n, other, f"{x:.1%}", c) for x, n, other, c in rows]


def _samples(run, clips):
    shown = set()
    for name, source in run.config.evaluations.items():
        if (source.kind, source.head) in shown:
            continue
        shown.add((source.kind, source.head))
        yield f"<h3>{html.escape(f'{source.dataset} {source.split}')}</h3>"
        try:
            split = reading.open_split(
                source.dataset, source.split, run.config.data_dir, source.kind
            )
            check_classes(source.head, run.trained.class_names[source.head], split)
        except (DatasetError, ClassNamesDiffer) as error:
            yield _absent(f"Its examples cannot be shown: {error}")
            continue
        chosen = np.unique(np.linspace(0, len(split) - 1, clips).round().astype(int))
        yield f"<p>{len(chosen)} of {len(split):,}, evenly spread over the split."
        cards = "".join(_sample(run, name, split, int(i)) for i in chosen)
        yield f'<div class="samples">{cards}</div>'
    if not shown:
        yield _absent("The config has no evaluation whose examples could be shown.")


def _sample(run, name, split, index) -> str:
    """Returns HTML of an example with its labels and the best three predictions."""
    source, trained = run.config.evaluations[name], run.trained
    try:
        record = split[index]
    except (reading.UnreadableRecord, UnreachableStorage) as error:
        return _figure(html.escape(str(error)))
    labels = labels_of(record, trained.class_names[source.head])
    title = f"{record['id']}: {', '.join(labels) or 'no class'}"
    config = run.config
    example = examples.EvaluationExample.of(config.clip, config.loader, source)
    try:
        views = example.read_record(record, None)["video"]
        if split.kind == "image":
            shown = html.picture(_still(views[0, 0]), "jpeg", title)
        else:
            encoded = record[split.kind]
            span = record.get(SPAN) or (0.0, inspection.seconds(encoded))
            shown = _video(_SAMPLE(encoded, _middle(*span)), title)
    except UndecodableClip as error:
        return _figure(html.escape(f"{title}. It does not decode: {error}"))
    (scores,) = trained.scores(views[None], source.head)
    best = trained.best(scores, source.head, 3)
    verdict = "correct" if best[0][0] in labels else "wrong"
    lines = "".join(
        f"<li{' class=label' if predicted in labels else ''}>{html.escape(predicted)}"
        f" <span>{probability:.0%}</span>"
        for predicted, probability in best
    )
    told = f'{html.escape(title)}<b class="{verdict}">{verdict}</b><ol>{lines}</ol>'
    return _figure(told, shown)


def _figure(caption, shown="") -> str:
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _middle(start: float, end: float) -> tuple[float, float]:
    """Returns the part of a video, from start to end in seconds, that is shown."""
    cut = max(end - start - _SHOWN_SECONDS, 0.0) / 2
    return start + cut, end - cut


def _tubes(run):
    yield from _pictures(run, "tubes")
    text = f"<pre>{html.escape(describe(run.config))}</pre>"
    yield html.details("Tokens, parameters and FLOPs", text)


def _throughput(run):
    lines = [training_metrics(line) for line in run.metrics]
    lines = [line for line in lines if examples_per_second(line)]
    if not lines:
        yield _absent("Its speed was never logged.")
        return
    yield from _pictures(run, "curves", "throughput")
    rows = [*_rates(lines)]
    seconds = {p: sum(x[f"seconds/{p}"] for x in lines) for p in PARTS}
    waiting = seconds["input"] / sum(seconds[p] for p in TRAINING)
    rows.append(("of training, waiting for input", f"{waiting:.1%}"))
    rows += [(f"{p}, all logged", f"{x:,.1f} s") for p, x in seconds.items()]
    yield html.table(("what", ""), rows, numbers=1)


#: Rates of training on the page by their metrics: title, and the value in words.
_RATES = {
    "step_seconds": ("seconds a step, median", "{:.3g}".format),
    "predicted/step_seconds": ("seconds a step, predicted", "{:.3g}".format),
    "flops_per_second_per_device": (
        "model FLOPs a second and device, median",
        lambda flops: f"{in_flops(flops)}/s",
    ),
    "mfu": ("MFU, share of the device's peak, median", "{:.1%}".format),
    "predicted/mfu": ("MFU, predicted", "{:.1%}".format),
    "device_bytes/in_use": ("memory of a device in use, median", in_gib),
    "device_bytes/peak": ("memory of a device, peak", in_gib),
    "predicted/device_bytes": ("memory of a device, peak, predicted", in_gib),
    "device_bytes/limit": ("memory of a device, limit", in_gib),
}


def _rates(lines) -> Iterator[tuple[str, str]]:
    """Yields (title, value) of the rates that a run logged."""
    speeds = [examples_per_second(line) for line in lines]
    for name in dict.fromkeys(name for speed in speeds for name in speed):
        speed = np.median([x[name] for x in speeds if name in x])
        yield f"{name}: examples a second, median", f"{speed:,.1f}"
    for name, (title, in_words) in _RATES.items():
        if values := [line[name] for line in lines if name in line]:
            value = max(values) if name == "device_bytes/peak" else np.median(values)
            yield title, in_words(value)


def _data(run):
    rows, named = [], []
    highest = collections.defaultdict(float)
    for line in run.metrics:
        for key, value in line.items():
            highest[key] = max(highest[key], value)
    for name, source in run.config.streams.items():
        count = highest.get(f"train/{name}/undecodable")
        shown = "not logged" if count is None else f"{count:,.0f}"
        rows.append((f"{source.dataset} {source.split}", f"training, {name}", shown))
    for e in run.evaluations.values():
        data, ids = f"{e['dataset']} {e['split']}", e["undecodable"]
        rows.append((data, f"evaluation, {e['evaluation']}", f"{len(ids):,}"))
        named += [f"{data} {i}: not decoded in evaluation" for i in ids]
    sources = (*run.config.streams.values(), *run.config.evaluations.values())
    for data in sorted({source.dataset for source in sources}):
        left_out = _left_out(data, run.config.data_dir)
        shown = "no manifest" if left_out is None else f"{len(left_out):,}"
        rows.append((data, "left out when prepared", shown))
        named += [f"{data} {row.split} {row.printable}" for row in left_out or ()]
    yield "<p>Examples that do not decode, and files that were left out."
    rows = dict.fromkeys(rows)  # evaluations of other views find the same
    yield html.table(("data set", "found in", "examples"), rows, numbers=1)
    if named:
        more = f"<p>and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
        lines = f"<ul>{html.items(named[:NAMED])}</ul>{more}"
        yield html.details(f"<b>{len(named):,} by name</b>", lines, opened=True)


def _left_out(dataset: str, data_dir) -> list[manifest.Row] | None:
    """Returns files left out in preparing; None if there is no manifest."""
    directory = reading.prepared_directory(dataset, data_dir)
    if directory is None or not (directory / manifest.NAME).exists():
        return None
    rows = manifest.read(directory / manifest.NAME)
    return [row for row in rows if row.status != manifest.OK]


_STYLE = """\
nav { display: flex; flex-wrap: wrap; gap: 0.2em 1em; }
section { margin-top: 1.5em; }
section h2 { font-size: 1.25em; border-bottom: 1px solid #8886; margin-bottom: 0.4em; }
h3 { font-size: 1em; margin: 1em 0 0.3em; }
.scroll { overflow-x: auto; }
.drawn { width: var(--width); max-width: max(100%, 640px); margin: 0.4em 0; }
img, video { border-radius: 4px; background: #fff; }
video { display: block; width: 100%; }
.moving { max-width: 480px; margin: 0.4em 0; }
table { border-collapse: collapse; overflow-wrap: normal; margin: 0.4em 0; }
th, td { padding: 0.15em 0.8em 0.15em 0; text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid #8886; }
td { border-bottom: 1px solid #8883; max-width: 32em; }
.n { text-align: right; }
@media (max-width: 700px) {
  table { font-size: 0.85em; }
  td { overflow-wrap: anywhere; min-width: 4.5em; padding-right: 0.5em; }
  td:first-child { min-width: 8em; }
}
pre { overflow-x: auto; font-size: 0.85em; overflow-wrap: normal; }
.absent { border-left: 3px solid #d90; padding-left: 0.6em; }
.samples { display: grid; gap: 1em; }
.samples { grid-template-columns: repeat(auto-fill, minmax(min(100%, 11em), 1fr)); }
.samples video, .samples img { aspect-ratio: 4 / 3; object-fit: contain; }
.samples video, .samples img { background: #000; }
.samples ol { margin: 0; padding-left: 1.4em; }
figcaption b { margin-left: 0.5em; }
.correct, .label { color: #2a8a3a; }
.wrong { color: #d33; }"""
