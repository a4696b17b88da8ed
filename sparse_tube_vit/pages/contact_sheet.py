"""An HTML page of clips as training samples them, one strip of frames per class."""

import dataclasses
import itertools
import string

import numpy as np

from sparse_tube_vit.datasets import processes
from sparse_tube_vit.datasets.manifest import Row
from sparse_tube_vit.datasets.preparing.verification import (
    Problem,
    Verification,
    open_once,
)
from sparse_tube_vit.datasets.reading import Split
from sparse_tube_vit.datasets.times import SPAN
from sparse_tube_vit.input.examples import TrainingExample
from sparse_tube_vit.pages import html
from sparse_tube_vit.video.limits import UndecodableClip

FRAMES = 8  # a strip
SIDE, SMALL_SIDE = 176, 96  # pixels
MANY_CLASSES = 120  # from this number on frames are small


@dataclasses.dataclass(frozen=True)
class Strip:
    """Frames of one clip, spread evenly over it.

    Attributes:
        pictures: JPEG files.
        times: Presentation times in seconds after the video's first frame.
    """

    pictures: tuple[bytes, ...]
    times: tuple[float, ...]


def sample(
    encoded: bytes,
    example: TrainingExample,
    seed: int,
    side: int,
    span: tuple[float, float] | None = None,
) -> Strip:
    """Samples a clip as training does, without augmentation.

    Args:
        encoded: Encoded video or image.
        example: Training's map from records to examples.
        seed: Seed of the random start and crop.
        side: Side of the pictures in pixels.
        span: Start and end in seconds of the part that is used; None: all of it.

    Raises:
        UndecodableClip: Training could not decode it.
    """
    clip, times = example.sample(encoded, np.random.default_rng(seed), span)
    shown = np.unique(np.linspace(0, len(clip) - 1, FRAMES).round().astype(int))
    pictures = tuple(html.jpeg(clip[i], (side, side)) for i in shown)
    return Strip(pictures, tuple(times[shown].tolist()))


def _sample(task: tuple[Split, int, TrainingExample, int], count) -> Strip | str:
    del count
    split, index, example, side = task
    try:
        record = open_once(split)[index]
        return sample(record[split.kind], example, index, side, record.get(SPAN))
    except UndecodableClip as error:
        return str(error)


def contact_sheet(
    result: Verification,
    example: TrainingExample,
    workers: int = 0,
    configured: bool = False,
) -> str:
    """Returns a verification as an HTML page, with the first example of every class.

    Args:
        result: The verification.
        example: Training's map from records to examples.
        workers: Processes that decode.
        configured: Whether `example` is of a config file, not of the default config.

    Examples that decode, but that training cannot sample, are added to the problems.
    """
    # 700 classes with small frames take 17 MB.
    side = SIDE if len(result.first_examples) < MANY_CLASSES else SMALL_SIDE
    tasks = [
        (split, i, example, side) for split, i, _ in result.first_examples.values()
    ]
    strips = {}
    of_tasks = processes.run(_sample, tasks, workers)
    for name, strip in zip(result.first_examples, of_tasks, strict=True):
        row = result.first_examples[name][-1]
        if isinstance(strip, str):
            result.add(Problem.UNDECODABLE, f"{row.split} {row.id}: {strip}")
        else:
            strips[name] = row, strip
    shown = [(i, name) for i, name in enumerate(result.class_names) if name in strips]
    body = _BODY.substitute(
        directory=html.escape(str(result.directory)),
        counts=html.items(result.counts),
        problems="\n".join(itertools.starmap(_problem, result.sections)),
        how=html.escape(_how(example, configured)),
        kind=result.kind,
        sections="\n".join(_section(i, name, *strips[name]) for i, name in shown),
    )
    return html.page(result.name, body, _STYLE.substitute(side=side))


def _how(example: TrainingExample, configured: bool) -> str:
    t, least, most = example.frames, *example.crop_area
    crop = (
        f"a random crop of {least:.0%} to {most:.0%} of the picture, scaled to"
        f" {example.size}x{example.size} pixels"
    )
    if configured:
        whose = "as training with the given --config samples it"
    else:
        whose = (
            "as the default config samples it (training does as its own config says: "
            "give verify --config FILE)"
        )
    if example.kind == "image":
        return f"An image of each class {whose}: {crop}."
    return (
        f"A clip of each class {whose}: {t} frames at {example.fps:g} frames a second"
        f" ({t / example.fps:.2f} seconds) from a random start; {crop}. Below a frame:"
        " when the video shows it, from its first frame on. A video shorter than the"
        " clip loops."
    )


def _problem(heading: str, advice: str, places: list[str]) -> str:
    return html.details(
        f"<b>{html.escape(heading)}.</b> {html.escape(advice)}",
        f"<ul>{html.items(places)}</ul>",
        opened=heading.startswith("wrong"),
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
$problems
<p>$how</p>
<main class="$kind">
$sections
</main>""")
