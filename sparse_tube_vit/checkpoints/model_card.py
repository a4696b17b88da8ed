"""The model card of a release."""

from sparse_tube_vit.checkpoints.stored import StoredModel
from sparse_tube_vit.config import from_json
from sparse_tube_vit.models.variants import make_tubes


def model_card(
    name: str,
    path: str,
    model: StoredModel,
    dtype: str,
    results: list[dict],
    license: str = "",
) -> str:
    """Returns the README.md of a release: data, steps, accuracies, use, versions.

    Args:
        name: The release's name.
        path: Path or URL that `load` finds it by.
        model: The model.
        dtype: The dtype of the written parameters.
        results: Evaluations of the model, as of `release.evaluations`.
        license: The license of the weights; "" if none is stated.
    """
    run, config = model.run, from_json(model.run["config"])
    blocks = [
        _front_matter(config, license),
        f"# {name}",
        "A [TubeViT](https://arxiv.org/abs/2212.03229) (sparse video tubes, CVPR 2023) "
        f"of {_sizes(config)}, trained for {model.step:,} steps with "
        f"sparse_tube_vit {run['versions'].get('sparse_tube_vit')}"
        + (f", starting from `{config.init.weights}`." if config.init.weights else "."),
        f"```python\nimport sparse_tube_vit as stv\n\ntubevit = stv.load({path!r})\n"
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
        _accuracy(config, model, dtype, results),
        "## Model",
        _model(config, model, dtype),
        "## Versions",
        "\n".join(f"* {package} {v}" for package, v in run["versions"].items()),
        "## Licence",
        f"Weights: {license or 'not stated by whoever released them'}. The data sets "
        "that they were trained on have terms of their own. The code, "
        "sparse_tube_vit: Apache-2.0.",
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(config, license):
    """Returns the YAML that model hubs read."""
    kinds = {s.kind for s in config.streams.values()}
    lines = ["library_name: sparse_tube_vit", "tags:"]
    lines += [f"- {kind}-classification" for kind in sorted(kinds)] + ["- tubevit"]
    if license:
        lines.append(f"license: {license}")
    return "\n".join(["---", *lines, "---"])


def _sizes(config):
    m = config.model
    return f"{m.depth} layers, width {m.width}, {m.heads} heads"


def _accuracy(config, model, dtype, results):
    if not results:
        if config.optimizer.ema_decay and not model.averaged:
            return (
                "Not measured: these are the parameters of the last step, where the "
                "run's evaluations are of the averaged ones."
            )
        return f"Not measured at step {model.step:,}."
    rows = []
    for r in results:
        views = f"{r['size']}x{r['size']}, {r['tokens']} tokens"
        if r["kind"] == "video":
            views = (
                f"{'maximum of ' if r.get('combine_views') == 'max' else ''}"
                f"{r['temporal_views']}x{r['spatial_views']} views of {r['frames']} "
                f"frames at {r['fps']:g} fps, {views}"
            )
        names = {"top1": "Top-1", "top5": "Top-5", "mAP": "mAP"}
        measured = ", ".join(f"{n} {r[k]:.1%}" for k, n in names.items() if k in r)
        of = f"{r['examples']} {r['kind']}s of {r['dataset']} {r['split']}"
        if r["undecodable"]:
            of += f", {len(r['undecodable'])} of them undecodable and so wrong"
        rows.append((r["head"], measured, of, views))
    text = _table(("head", "measured", "of", "protocol"), rows)
    if dtype != "float32":
        text += f"\n\nMeasured with the parameters in float32, before {dtype}."
    return text


def _model(config, model, dtype):
    clip = config.clip
    lines = [
        f"Clips of {clip.frames} frames at {clip.fps:g} fps, "
        f"{clip.size}x{clip.size} pixels. Tubes, as frames x height x width:"
    ]
    lines += [f"* {tube}" for tube in make_tubes(config.model.tubes)]
    averaged = "averaged over training" if model.averaged else "of the last step"
    return "\n".join(lines) + f"\n\nParameters {averaged}, in {dtype}."


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
