"""Writes a release: a folder with a trained model, to be loaded by `load`.

    python -m sparse_tube_vit.release --workdir RUN --out DIR [--dtype bfloat16]
        [--no-ema] [--step N] [--license NAME] [--overwrite]

The model card tells what a run's work directory says: data, steps, accuracy with its
protocol. See `saved` for what the folder holds.
"""

import argparse
import json
from pathlib import Path

from etils import epath

from sparse_tube_vit import saved
from sparse_tube_vit.config import from_json
from sparse_tube_vit.errors import reported
from sparse_tube_vit.log import log, to_stderr
from sparse_tube_vit.saved import Saved
from sparse_tube_vit.variants import make_tubes


def release(
    workdir,
    directory,
    step: int | None = None,
    ema: bool = True,
    dtype: str = "float32",
    license: str = "",
    overwrite: bool = False,
) -> Saved:
    """Writes the checkpoint of a run as a release; returns what was released.

    Args:
      workdir: of the run, or one step of its checkpoints; local or gs://.
      directory: of the release, on a local disk.
      step, ema: as for `saved.read`.
      dtype, overwrite: as for `saved.write_release`.
      license: of the weights, for the model card, as "cc-by-4.0".

    Raises: the errors of `saved.read` and `saved.write_release`.
    """
    found = saved.read(workdir, step, ema)
    results = evaluations(found)
    card = model_card(Path(directory).name, found, dtype, results, license)
    saved.write_release(directory, found, card, dtype, overwrite)
    return found


def evaluations(found: Saved) -> list[dict]:
    """What was measured of these parameters, as `evaluate` wrote it in their run."""
    config = from_json(found.run["config"])
    if found.workdir is None or (config.optimizer.ema_decay and not found.averaged):
        return []  # of those in training nothing is measured where there is an average
    paths = sorted((epath.Path(found.workdir) / "evaluations").glob("*.json"))
    results = [json.loads(path.read_text()) for path in paths]
    return [result for result in results if result["step"] == found.step]


def model_card(
    name: str, found: Saved, dtype: str, results: list[dict], license: str = ""
) -> str:
    """The README.md of a release: data, steps, accuracies, use, versions.

    Args:
      name: of the release.
      found: what is released.
      dtype: that its parameters are written in.
      results: as of `evaluations`.
      license: of the weights; "" if none is stated.
    """
    run, config = found.run, from_json(found.run["config"])
    blocks = [
        _front_matter(config, license),
        f"# {name}",
        "A [TubeViT](https://arxiv.org/abs/2212.03229) (sparse video tubes, CVPR 2023) "
        f"of {_sizes(config)}, trained for {found.step:,} steps with "
        f"sparse_tube_vit {run['versions'].get('sparse_tube_vit')}"
        + (f", starting from `{config.init.weights}`." if config.init.weights else "."),
        f"```python\nimport sparse_tube_vit as stv\n\ntubevit = stv.load({name!r})\n"
        'tubevit.predict("clip.mp4")\n```',
        "## Training data",
        _table(
            ("stream", "data set", "split", "kind", "head", "classes", "batch"),
            [
                (
                    stream,
                    s.dataset,
                    s.split,
                    s.kind,
                    s.head,
                    len(run["class_names"][s.head]),
                    s.batch_size,
                )
                for stream, s in config.streams.items()
            ],
        ),
        "## Accuracy",
        _accuracy(config, found, dtype, results),
        "## Model",
        _model(config, found, dtype),
        "## Versions",
        "\n".join(f"* {package} {v}" for package, v in run["versions"].items()),
        "## Licence",
        f"Weights: {license or 'not stated by whoever released them'}. The data sets "
        "that they were trained on have terms of their own. The code, "
        "sparse_tube_vit: Apache-2.0.",
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(config, license):
    """What model hubs read."""
    kinds = {s.kind for s in config.streams.values()}
    lines = ["library_name: sparse_tube_vit", "tags:"]
    lines += [f"- {kind}-classification" for kind in sorted(kinds)] + ["- tubevit"]
    if license:
        lines.append(f"license: {license}")
    return "\n".join(["---", *lines, "---"])


def _sizes(config):
    m = config.model
    return f"{m.depth} layers, width {m.width}, {m.heads} heads"


def _accuracy(config, found, dtype, results):
    if not results:
        if config.optimizer.ema_decay and not found.averaged:
            return (
                "Not measured: these are the parameters of the last step, where the "
                "run's evaluations are of the averaged ones."
            )
        return f"Not measured at step {found.step:,}."
    rows = []
    for r in results:
        views = f"{r['size']}x{r['size']}, {r['tokens']} tokens"
        if r["kind"] == "video":
            views = (
                f"{r['temporal_views']}x{r['spatial_views']} views of {r['frames']} "
                f"frames at {r['fps']:g} fps, {views}"
            )
        names = {"top1": "Top-1", "top5": "Top-5", "mAP": "mAP"}
        measured = ", ".join(f"{n} {r[k]:.1%}" for k, n in names.items() if k in r)
        of = f"{r['distinct']} {r['kind']}s of {r['dataset']} {r['split']}"
        if r["undecodable"]:
            of += f", {len(r['undecodable'])} of them undecodable and so wrong"
        rows.append((r["head"], measured, of, views))
    text = _table(("head", "measured", "of", "protocol"), rows)
    if dtype != "float32":
        text += f"\n\nMeasured with the parameters in float32, before {dtype}."
    return text


def _model(config, found, dtype):
    clip = config.clip
    lines = [
        f"Clips of {clip.frames} frames at {clip.fps:g} fps, "
        f"{clip.size}x{clip.size} pixels. Tubes, as frames x height x width:"
    ]
    lines += [f"* {tube}" for tube in make_tubes(config.model.tubes)]
    averaged = "averaged over training" if found.averaged else "of the last step"
    return "\n".join(lines) + f"\n\nParameters {averaged}, in {dtype}."


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m sparse_tube_vit.release",
        description="Writes a run's checkpoint as a folder that `load` takes.",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        help="of the run, or one step of its checkpoints; or gs://...",
    )
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument("--step", type=int, help="default: the latest checkpoint")
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the averaged parameters, if there are any",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--license", default="", help="of the weights, for the card")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a release that is there"
    )
    args = parser.parse_args()
    to_stderr()
    with reported():
        found = release(
            args.workdir,
            args.out,
            args.step,
            args.ema,
            args.dtype,
            args.license,
            args.overwrite,
        )
        log.info("Wrote %s as a release to %s", found.name, args.out)


if __name__ == "__main__":
    main()
