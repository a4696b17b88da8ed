"""A run as one HTML page."""

import collections
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from PIL import Image

from sparse_tube_vit import figures
from sparse_tube_vit.checkpoints import stored
from sparse_tube_vit.config import (
    default_config,
    differences,
    evaluation,
    from_json,
    stream,
)
from sparse_tube_vit.datasets import manifest, reading
from sparse_tube_vit.datasets.classes import ClassNamesDiffer, check_classes
from sparse_tube_vit.errors import DatasetError, TubeViTError
from sparse_tube_vit.figures import run as pictures
from sparse_tube_vit.figures.run import Run
from sparse_tube_vit.input import examples
from sparse_tube_vit.pages import html
from sparse_tube_vit.training.description import describe
from sparse_tube_vit.training.reporting import PARTS
from sparse_tube_vit.video.decode import Crop, UndecodableClip, decode
from sparse_tube_vit.video.transcode import Transcode

CLIPS = 8  # shown of an evaluation


WORST = 10  # classes


NAMED = 50  # of what does not decode


#: Of videos on the page: they are looked at, not measured.
_SMALL = Transcode(short_side=144, gop=60, crf=30)


class NoWorkDirectory(TubeViTError, ValueError):
    """A model alone, without what its run wrote, is no run to report on."""


def report(run: Run, clips: int = CLIPS) -> str:
    """The page of a run as HTML.

    Args:
      run: a work directory, with a checkpoint.
      clips: examples of every evaluation that are shown with their predictions.

    Raises:
      NoWorkDirectory: it is a release, or one step of a run's checkpoints.
      And as `load`.
    """
    check_workdir(run)
    sections = {
        "Configuration": _configuration,
        "Curves": _curves,
        "Accuracy": _accuracy,
        "Classes": _classes,
        "Samples": lambda run: _samples(run, clips),
        "Tubes": _tubes,
        "Kernels": _kernels,
        "Positions": _positions,
        "Attention": _attention,
        "Throughput": _throughput,
        "Data": _data,
    }
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in sections)
    body = [f"<ul>{html.items(_summary(run))}</ul>", f"<nav>{links}</nav>"]
    for name, section in sections.items():
        inside = "\n".join(section(run))
        body.append(f'<section id="{name}"><h2>{name}</h2>\n{inside}</section>')
    return html.page(f"Run {run.workdir.resolve().name}", "\n".join(body), _STYLE)


def check_workdir(run: Run) -> None:
    """Raises, as `report`, unless there is a run with a model."""
    run.trained  # noqa: B018  without a model there is nothing to report
    if not (run.workdir / "checkpoints").is_dir():
        raise NoWorkDirectory(
            f"{run.workdir} holds a model alone. A report needs the work directory of "
            "its run, which holds its checkpoints, metrics and evaluations."
        )


def _summary(run) -> Iterator[str]:
    trained = run.trained
    count = sum(x.size for x in jax.tree.leaves(trained.params))
    averaged = ", averaged over training" if trained.averaged else ""
    yield f"{run.workdir}"
    yield f"Step {trained.step:,} of {run.config.total_steps:,}"
    yield f"{count:,} parameters{averaged}"
    for head, names in trained.class_names.items():
        yield f"Head {head}: {len(names):,} classes"
    for e in run.evaluations.values():
        yield f"{e['evaluation']}: {_figures_of(e)} at step {e['step']:,}"


def _absent(what: str) -> str:
    return f'<p class="absent">{html.escape(what)}'


def _image(figure: Figure, alt: str, photograph: bool = False) -> str:
    """A figure, as a picture that scrolls by itself on narrow screens."""
    file, kind = io.BytesIO(), "png"
    if photograph:  # many times smaller
        figure.canvas.draw()
        drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
        drawn.save(file, "WEBP", quality=90)
        kind = "webp"
    else:
        figure.savefig(file, format="png")
    width = round(figure.get_figwidth() * 90)
    return (
        f'<div class="scroll"><div class="drawn" style="--width: {width}px">'
        f"{html.picture(file.getvalue(), kind, alt)}</div></div>"
    )


def _configuration(run):
    saved = stored.locate(run.workdir, run.trained.step).read_description()
    # As it was trained: what was loaded is set up for this device.
    config = json.loads(from_json(saved["config"]).to_json())
    rows = [
        (key, _said(before), _said(now))
        for key, before, now in differences(_defaults(config), config)
    ]
    yield "<p>What differs from the defaults."
    yield html.table(("key", "default", "here"), rows)
    everything = html.escape(json.dumps(config, indent=1))
    yield html.details("All of it", f"<pre>{everything}</pre>")
    versions = html.table(("package", "version"), saved["versions"].items())
    yield html.details("Versions that it was saved with", versions)


def _defaults(config: dict) -> dict:
    """The default config, with the defaults of as many streams and evaluations."""
    defaults = json.loads(default_config().to_json())
    required = {"kind": "", "dataset": "", "head": "", "batch_size": 1}
    for section, make in (("streams", stream), ("evaluations", evaluation)):
        whole = json.loads(make(**required).to_json())
        optional = {k: v for k, v in whole.items() if k not in required}
        defaults[section] = {name: optional for name in config[section]}
    return defaults


def _said(value) -> str:
    return "" if value is None else json.dumps(value)


def _curves(run):
    if not run.metrics:
        yield _absent("It has no metrics.jsonl: its parameters come from elsewhere.")
        return
    yield _image(
        figures.training_curves(run.metrics),
        "Loss and accuracy of training and evaluation, against steps.",
    )


def _accuracy(run):
    if not run.evaluations:
        yield _absent(
            "No evaluation yet. It comes with the last step, or from "
            f"python -m sparse_tube_vit.evaluate --workdir {run.workdir}"
        )
        return
    protocol = ("examples", "views", "clip", "tokens", "undecodable", "step")
    rows = []
    for e in run.evaluations.values():
        seen, clip = "1", f"{e['size']}x{e['size']}"
        if e["kind"] == "video":
            seen = f"{e['temporal_views']}x{e['spatial_views']}"
            if e["videos_with_fewer_views"]:
                seen += f", {e['mean_distinct_views']:.2f} distinct"
            clip = f"{e['frames']} frames at {e['fps']:g} fps, {clip}"
        data = f"{e['dataset']} {e['split']}"
        counts = (f"{e['examples']:,} {e['kind']}s", seen, clip, e["tokens"])
        missed = len(e["undecodable"])
        rows.append(
            (e["evaluation"], _figures_of(e), data, *counts, missed, f"{e['step']:,}")
        )
    yield html.table(("evaluation", "accuracy", "data", *protocol), rows)
    yield "<p>Scores are averaged over views. What does not decode counts as wrong."
    for _, figure in pictures.tokens(run):
        yield _image(figure, "Accuracy against the number of tokens.")


def _figures_of(e: dict) -> str:
    shown = {"top1": "Top-1", "top5": "Top-5", "mAP": "mAP"}
    return ", ".join(f"{name} {e[key]:.1%}" for key, name in shown.items() if key in e)


def _classes(run):
    if not run.evaluations:
        yield _absent("No evaluation yet.")
    drawn = dict(pictures.confusion(run))
    for name, e in run.evaluations.items():
        yield f"<h3>{html.escape(name)}</h3>"
        if figure := drawn.get(f"{name}_confusion"):
            alt = f"Confusion matrix of {e['evaluation']}: labels by predictions."
            yield _image(figure, alt)
        else:
            yield _absent("No confusion matrix: examples have several labels.")
        yield f"<p>Worst {WORST} classes"
        yield html.table(*_worst(e), numbers=2)


def _worst(e: dict):
    """(head, rows) of a table of the classes with the lowest figures."""
    key, title = ("top1", "Top-1") if "confusion" in e else ("average_precision", "AP")
    names = list(e["per_class"])
    rows = []
    for i, (name, of_class) in enumerate(e["per_class"].items()):
        if of_class[key] is None:  # no example is of it
            continue
        taken = ""
        if "confusion" in e:
            others = np.array(e["confusion"][i])
            others[i] = 0
            most = others.argmax()
            if others[most]:
                taken = f"{names[most]} ({others[most]})"
        rows.append((of_class[key], name, taken, of_class["count"]))
    rows.sort(key=lambda row: row[0])
    head = ("class", "mostly taken for", title, "examples")
    return head, [(n, taken, f"{x:.1%}", c) for x, n, taken, c in rows[:WORST]]


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
    source, trained = run.config.evaluations[name], run.trained
    record = split[index]
    names, labels = trained.class_names[source.head], np.asarray(record["label"])
    right = [names[i] for i in (np.flatnonzero(labels) if labels.ndim else [labels])]
    said = f"{record['id']}: {', '.join(right) or 'no class'}"
    example = examples.EvaluationExample.of(run.config.clip, source)
    try:
        seen = example.read(record[split.kind], None)["video"]
        if split.kind == "image":
            shown = html.picture(_still(seen[0, 0]), "jpeg", said)
        else:
            small = _SMALL(record[split.kind])
            shown = html.video(small, _still(_first_frame(small)), said)
    except UndecodableClip as error:
        text = html.escape(f"{said}. It does not decode: {error}")
        return f"<figure><figcaption>{text}</figcaption></figure>"
    (scores,) = trained.scores(seen[None], source.head)
    best = trained.best(scores, source.head, 3)
    verdict = "right" if best[0][0] in right else "wrong"
    lines = "".join(
        f"<li{' class=label' if label in right else ''}>{html.escape(label)}"
        f" <span>{share:.0%}</span>"
        for label, share in best
    )
    return (
        f"<figure>{shown}<figcaption>{html.escape(said)}"
        f'<b class="{verdict}">{verdict}</b><ol>{lines}</ol></figcaption></figure>'
    )


def _still(frame: np.ndarray) -> bytes:
    height, width = frame.shape[:2]
    scale = max(1, 160 / min(height, width))
    return html.jpeg(frame, (round(width * scale), round(height * scale)))


def _first_frame(mp4: bytes) -> np.ndarray:
    def whole(height, width):
        return Crop(0, 0, height, width, height, width)

    return decode(mp4, lambda duration: np.zeros(1), whole)[0][0]


def _tubes(run):
    try:
        drawn = dict(pictures.tubes(run))
    except (DatasetError, UndecodableClip) as error:
        yield _absent(f"There is no clip to draw the tubes on: {error}")
        drawn = {}
    if "tubes" in drawn:
        alt = "Frames of a clip, a row a tube, with the windows that it reads."
        yield _image(drawn["tubes"], alt, photograph=True)
    if "tubes_animated" in drawn:
        with tempfile.TemporaryDirectory() as directory:
            gif = Path(directory) / "tubes.gif"
            figures.save(drawn["tubes_animated"], gif)
            small = Transcode(short_side=480, gop=60, crf=26)(gif.read_bytes())
        label = "The clip as it plays, with the windows that every tube reads."
        moving = html.video(small, _still(_first_frame(small)), label)
        yield f'<div class="moving">{moving}</div>'
    text = f"<pre>{html.escape(describe(run.config))}</pre>"
    yield html.details("Tokens, parameters and FLOPs", text)


def _kernels(run):
    for name, figure in pictures.kernels(run):
        yield _image(figure, f"Learned filters, {name.replace('_', ' ')}.")


def _positions(run):
    drawn = list(pictures.positions(run))
    if not drawn:
        yield _absent("The model has no position embeddings.")
    for _, figure in drawn:
        yield _image(figure, "Cosine similarity of the tokens' position embeddings.")


def _attention(run):
    try:
        for name, figure in pictures.attention(run):
            alt = f"{name.replace('_', ' ')} drawn over frames of a clip, a row a tube."
            yield _image(figure, alt.capitalize(), photograph=True)
    except (DatasetError, UndecodableClip) as error:
        yield _absent(f"There is no clip to look at: {error}")


def _throughput(run):
    drawn = dict(pictures.curves(run))
    if "throughput" not in drawn:
        yield _absent("Its speed was never logged.")
        return
    lines = [x for x in run.metrics if "train/clips_per_second" in x]
    seconds = {p: sum(x.get(f"train/seconds/{p}", 0.0) for x in lines) for p in PARTS}
    training = seconds["input"] + seconds["step"] + seconds["logging"]
    speed = np.median([x["train/clips_per_second"] for x in lines])
    step = np.median([x["train/step_seconds"] for x in lines])
    rows = [
        ("clips and images a second, median", f"{speed:,.1f}"),
        ("seconds a step, median", f"{step:,.3f}"),
    ]
    if training:
        rows.append(
            ("of training, waiting for input", f"{seconds['input'] / training:.1%}")
        )
        rows += [(f"{p}, all logged", f"{x:,.1f} s") for p, x in seconds.items()]
    yield _image(drawn["throughput"], "Clips a second, and the parts of the time.")
    yield html.table(("what", ""), rows, numbers=1)


def _data(run):
    rows, named = [], []
    told = collections.defaultdict(float)
    for line in run.metrics:
        for key, value in line.items():
            told[key] = max(told[key], value)
    for name, source in run.config.streams.items():
        count = told.get(f"train/{name}/undecodable")
        said = "not logged" if count is None else f"{count:,.0f}"
        rows.append((f"{source.dataset} {source.split}", f"training, {name}", said))
    for e in run.evaluations.values():
        data = f"{e['dataset']} {e['split']}"
        missed = e["undecodable"]
        rows.append((data, f"evaluation, {e['evaluation']}", f"{len(missed):,}"))
        named += [f"{data} {i}: not decoded in evaluation" for i in missed]
    for data in sorted(_datasets(run.config)):
        left_out = _left_out(data, run.config.data_dir)
        said = "no manifest" if left_out is None else f"{len(left_out):,}"
        rows.append((data, "left out when prepared", said))
        named += [f"{data} {row.split} {row.printable}" for row in left_out or ()]
    yield "<p>Examples that do not decode, and files that were left out."
    yield html.table(("data set", "found in", "examples"), rows, numbers=1)
    if named:
        more = f"<p>and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
        lines = f"<ul>{html.items(named[:NAMED])}</ul>{more}"
        yield html.details(f"<b>{len(named):,} by name</b>", lines, opened=True)


def _datasets(config) -> set[str]:
    sources = (*config.streams.values(), *config.evaluations.values())
    return {source.dataset for source in sources}


def _left_out(dataset: str, data_dir) -> list[manifest.Row] | None:
    """What preparing a data set left out; None where there is no manifest of it."""
    directory = epath.Path(data_dir) / dataset  # perhaps with its version
    found = [*directory.glob(manifest.NAME)]
    found += sorted(directory.glob(f"*/{manifest.NAME}"))
    if not found:
        return None
    return [row for row in manifest.read(found[-1]) if row.status != manifest.OK]


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
.right, .label { color: #2a8a3a; }
.wrong { color: #d33; }"""
