"""A page of clips as training samples them, a strip of frames for every class."""

import dataclasses
import itertools
import string

import numpy as np

from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.datasets.preparing.verification import (
    UNDECODABLE,
    Report,
    mapping,
    open_once,
)
from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.input.examples import TrainingExample
from sparse_tube_vit.pages import html
from sparse_tube_vit.video.decode import UndecodableClip

FRAMES = 8  # shown of a clip
SIDE, SMALL_SIDE, MANY = 176, 96, 120  # pixels a frame, small from so many classes on


@dataclasses.dataclass(frozen=True)
class Strip:
    """Frames of one clip, spread evenly over it.

    Attributes:
        pictures: JPEG files.
        times: When they are shown, in seconds after the video's first frame.
    """

    pictures: tuple[bytes, ...]
    times: tuple[float, ...]


def sample(encoded: bytes, example: TrainingExample, seed: int, side: int) -> Strip:
    """Reads a clip as training does, but for what changes its looks.

    Args:
        encoded: A video or an image.
        example: How training reads it.
        seed: Of the random start and crop.
        side: Of the pictures, in pixels.

    Raises:
        UndecodableClip: Training could not read it.
    """
    clip, times = example.sample(encoded, np.random.default_rng(seed))
    shown = np.unique(np.linspace(0, len(clip) - 1, FRAMES).round().astype(int))
    pictures = tuple(html.jpeg(clip[i], (side, side)) for i in shown)
    return Strip(pictures, tuple(times[shown].tolist()))


def _sample(task: tuple[Split, int, TrainingExample, int]) -> Strip | str:
    split, index, example, side = task
    try:
        record = open_once(split)[index]
        return sample(record[split.kind], example, index, side)
    except UndecodableClip as error:
        return str(error)


def contact_sheet(report: Report, example: TrainingExample, workers: int = 0) -> str:
    """The report as an HTML page, with the first example of every class.

    Examples that training cannot read, though they decode, are added to the report.
    """
    side = SIDE if len(report.first) < MANY else SMALL_SIDE  # 700 classes: 17 MB
    tasks = [(split, i, example, side) for split, i, _ in report.first.values()]
    strips = {}
    with mapping(min(workers, len(tasks))) as mapped:
        for name, strip in zip(report.first, mapped(_sample, tasks), strict=True):
            row = report.first[name][-1]
            if isinstance(strip, str):
                report.add(UNDECODABLE, f"{row.split} {row.id}: {strip}")
            else:
                strips[name] = row, strip
    shown = [(i, name) for i, name in enumerate(report.class_names) if name in strips]
    body = _BODY.substitute(
        directory=html.escape(str(report.directory)),
        counts=html.items(report.counts),
        findings="\n".join(itertools.starmap(_finding, report.findings)),
        how=html.escape(_how(example)),
        kind=report.kind,
        sections="\n".join(_section(i, name, *strips[name]) for i, name in shown),
    )
    return html.page(report.name, body, _STYLE.substitute(side=side))


def _how(example: TrainingExample) -> str:
    t, least, most = example.frames, *example.crop_area
    crop = (
        f"a random crop of {least:.0%} to {most:.0%} of the picture, scaled to"
        f" {example.size}x{example.size} pixels"
    )
    if example.kind == "image":
        return f"An image of each class as training crops it: {crop}."
    return (
        f"A clip of each class as training samples it: {t} frames at {example.fps:g}"
        f" frames a second ({t / example.fps:.2f} seconds) from a random start; {crop}."
        " Below a frame: when the video shows it, from its first frame on. A video"
        " shorter than the clip loops."
    )


def _finding(what: str, advice: str, places: list[str]) -> str:
    what, advice = html.escape(what), html.escape(advice)
    return html.details(
        f"<b>{what}.</b> {advice}",
        f"<ul>{html.items(places)}</ul>",
        opened=what.startswith("wrong"),
    )


def _section(number: int, name: str, row: Row, strip: Strip) -> str:
    about = f"{row.split} {row.id}: {row.width}x{row.height}"
    if row.seconds is not None:
        about += (
            f", {float(row.frame_rate or 0):.4g} fps, {row.decoded_frames} frames,"
            f" {row.seconds:.2f} s"
        )
    figures = []
    for picture, time in zip(strip.pictures, strip.times, strict=True):
        image = html.picture(picture, "jpeg")
        caption = f"<figcaption>{time:.2f} s</figcaption>" if row.seconds else ""
        figures.append(f"<figure>{image}{caption}</figure>")
    return (
        f"<section><h2>{number} {html.escape(name)}</h2><p>{html.escape(about)}</p>"
        f'<div class="strip">{"".join(figures)}</div></section>'
    )


_STYLE = string.Template("""\
section { content-visibility: auto; contain-intrinsic-size: auto 14em; }
main { margin-top: 1em; display: grid; gap: 1.2em 0.8em; }
main.image { grid-template-columns: repeat(auto-fill, minmax(8.5em, 1fr)); }
.video .strip { display: grid; gap: 4px; --side: minmax(0, ${side}px); }
.video .strip { grid-template-columns: repeat(8, var(--side)); }
@media (max-width: 700px) {
  .video .strip { grid-template-columns: repeat(4, var(--side)); }
}
img { max-width: ${side}px; }""")

_BODY = string.Template("""\
<p>$directory</p>
<ul>
$counts
</ul>
$findings
<p>$how</p>
<main class="$kind">
$sections
</main>""")
