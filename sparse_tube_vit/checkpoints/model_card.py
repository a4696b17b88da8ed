"""The model card of a release."""

import html
import json
import re
import shlex

from flax.traverse_util import flatten_dict

from sparse_tube_vit.checkpoints.evaluations import accuracies_in_words, views_in_words
from sparse_tube_vit.checkpoints.hub import is_hub
from sparse_tube_vit.checkpoints.stored import StoredModel
from sparse_tube_vit.config import from_json
from sparse_tube_vit.models.variants import make_tubes

#: Most classes that are listed in one line.
FEW = 50


def model_card(
    name: str,
    path: str,
    model: StoredModel,
    dtype: str,
    results: list[dict],
    license: str = "",
) -> str:
    """Returns the README.md of a release: use, classes, data, accuracies, versions.

    Args:
        name: The release's name.
        path: The release at hf://, or "." for the folder of the card.
        model: The model.
        dtype: The dtype of the written parameters.
        results: Evaluations of the model, as of `release.evaluations`.
        license: The license of the weights; "" if none is stated.
    """
    run, config = model.description, from_json(model.description["config"])
    count = sum(x.size for x in flatten_dict(model.params).values())
    blocks = [
        _front_matter(config, license),
        f"# {_plain(name)}: TubeViT trained on {_plain(_data(config))}",
        "A [TubeViT](https://arxiv.org/abs/2212.03229) (sparse video tubes, CVPR 2023) "
        f"of {_sizes(config)}, {count:,} parameters, trained for {model.step:,} steps "
        f"with sparse_tube_vit {run['versions'].get('sparse_tube_vit')}"
        + (f", starting from `{config.init.weights}`." if config.init.weights else "."),
        "## Use",
        _use(path, config, run["class_names"]),
        "## Classes",
        *(_classes(head, names) for head, names in run["class_names"].items()),
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
        "## License",
        f"Weights: {license or 'not stated by whoever released them'}. The data sets "
        "that they were trained on have terms of their own. The code, "
        "sparse_tube_vit: Apache-2.0.",
    ]
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """Returns text as Markdown shows it: names may have any characters."""
    special = r"([\\`*\[\]|~#]|\b_|_\b)"  # underscores within words are plain
    return re.sub(special, r"\\\1", html.escape(text, quote=False))


def _data(config):
    """Returns the data sets' names, those of folders by the folders' names."""
    names = {
        re.sub(r"^\w+_folder/(.+?)(-[0-9a-f]{8})?$", r"\1", s.dataset)
        for s in config.streams.values()
    }
    return " and ".join(sorted(names))


def _use(path, config, class_names):
    """Returns code that classifies an input of every kind and head."""
    heads = {kind: set() for kind in ("video", "image")}
    for s in config.streams.values():
        heads[s.kind].add(s.head)
    files = {"video": "clip.mp4", "image": "photo.jpg"}
    where = "" if is_hub(path) else "  # the folder of this file"
    lines = ["import sparse_tube_vit as stv", ""]
    lines += [f"tubevit = stv.load({json.dumps(path)}){where}"]
    for kind, ours in heads.items():
        for head in sorted(ours):
            named = f", head={json.dumps(head)}" if len(ours) > 1 else ""
            lines.append(f'print(tubevit.predict("{files[kind]}"{named}, top=3))')
    for head in sorted({*class_names} - set.union(*heads.values())):
        kind = files["video" if heads["video"] else "image"]
        lines.append(
            f'print(tubevit.predict("{kind}", head={json.dumps(head)}, top=3))'
        )
    code = "\n".join(lines)
    install = 'pip install ".[hub]"' if is_hub(path) else "pip install ."
    return (
        f"With sparse_tube_vit installed (in its repository, `{install}`), in Python:"
        f"\n\n```python\n{code}\n```\n\n"
        "This prints the most probable classes and their probabilities. For any number "
        "of files, in a terminal:\n\n"
        f"```bash\nsparse-tube-vit predict --model {shlex.quote(path)} "
        "clip.mp4 folder/\n```"
    )


def _classes(head, names):
    """Returns the classes of a head, folded if there are many."""
    title = f"Head {_plain(head)}, {len(names):,} classes"
    if len(names) <= FEW:
        return f"{title}: {', '.join(map(_plain, names))}."
    lines = "\n".join(f"{i}. {_plain(name)}" for i, name in enumerate(names))
    return f"<details><summary>{title}</summary>\n\n{lines}\n\n</details>"


def _front_matter(config, license):
    """Returns the YAML that model hubs read."""
    kinds = {s.kind for s in config.streams.values()}
    kind = "video" if "video" in kinds else "image"
    lines = ["library_name: sparse_tube_vit", f"pipeline_tag: {kind}-classification"]
    lines += ["tags:"]
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
        if model.workdir is None:
            return f"No results of step {model.step:,} are known here."
        return f"Not measured at step {model.step:,}."
    rows = []
    for r in results:
        views = f"{r['size']}x{r['size']}, {r['tokens']} tokens"
        if r["training_tokens"] != r["tokens"]:
            views += f" ({r['training_tokens']} in training)"
        if r["kind"] == "video":
            views = (
                f"{views_in_words(r)} views of {r['frames']} frames at {r['fps']:g} "
                f"fps, {views}"
            )
        of = f"{r['examples']} {r['kind']}s of {r['dataset']} {r['split']}"
        if r["undecodable"]:
            of += f", {len(r['undecodable'])} of them undecodable and so wrong"
        rows.append((r["head"], accuracies_in_words(r), of, views))
    text = _table(("head", "measured", "of", "protocol"), rows)
    if dtype != "float32":
        text += f"\n\nMeasured with the parameters in float32, before {dtype}."
    return text


def _model(config, model, dtype):
    clip = config.clip
    lines = [
        f"Clips of {clip.frames} frames at {clip.fps:g} fps, "
        f"{clip.size}x{clip.size} pixels. Tubes, as frames x height x width:\n"
    ]
    lines += [f"* {tube}" for tube in make_tubes(config.model.tubes)]
    averaged = "averaged over training" if model.averaged else "of the last step"
    return "\n".join(lines) + f"\n\nParameters {averaged}, in {dtype}."


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
