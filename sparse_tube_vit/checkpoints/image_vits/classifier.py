"""The classifier of an image ViT: its classes, and whether it is a head here."""

import collections
import re
from collections.abc import Mapping

import numpy as np

from sparse_tube_vit.checkpoints.image_vits.families import Family

#: Begins the reason why an array outside the ViT is dropped.
OUTSIDE = "is no part of the ViT"

#: Names of distilled DeiT's second classifier, of another token than the first.
_SECOND = r"\b(head_dist|distillation_classifier)\."

#: Sizes of CLIP's embeddings, of base, base-plus, large, huge and bigger models.
_EMBEDDINGS = (512, 640, 768, 1024, 1280)


def labels(config: Mapping, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Returns its class names, see `ImageViT.labels`.

    Args:
        config: config.json of transformers or timm; {} without one.
        arrays: Arrays by our names.
    """
    if "head/kernel" not in arrays:
        return ()
    numbers = [str(i) for i in range(arrays["head/kernel"].shape[-1])]
    given = config.get("id2label") or config.get("label_names", ())
    if not isinstance(given, dict):
        given = dict(zip(numbers, given, strict=False))
    names = [str(given.get(i, i)) for i in numbers]
    counts = collections.Counter(names)  # ImageNet's "crane" is a bird and a machine
    return tuple(
        f"{name} ({i})" if counts[name] > 1 else name
        for i, name in zip(numbers, names, strict=True)
    )


def loss(config: Mapping) -> str:
    """Returns the classifier's loss, one of `models.losses.LOSSES`."""
    return "sigmoid" if _problem(config).startswith("multi") else "softmax"


def why_headless(
    family: Family,
    prefix: str,
    config: Mapping,
    names: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
    before_head: Mapping[str, np.ndarray],
    dropped: Mapping[str, tuple],
) -> str:
    """Returns why the classifier cannot be a head here; "" if it can, or is missing.

    Args:
        family: Family of the ViT.
        prefix: What stands before the ViT's names in the file.
        config: config.json of transformers or timm; {} without one.
        names: As `ImageViT.names`.
        arrays: As `ImageViT.arrays`.
        before_head: As `ImageViT.before_head`.
        dropped: As `ImageViT.dropped`.
    """
    if "head/kernel" not in arrays:
        named = (
            why for n, (_, why) in dropped.items() if re.search(r"\bclassifier\.", n)
        )
        why = next(named, "")
        return f"its classifier {why}" if why else ""
    *_, width = arrays["patch/kernel"].shape
    *size, outputs = arrays["head/kernel"].shape
    if size != [width]:
        return (
            f"{names['head/kernel']} makes {outputs} classes of {size}, not of {width} "
            "features"
        )
    return (
        _by_place(prefix, names["head/kernel"], dropped)
        or _by_layers(before_head, dropped)
        or _by_outputs(family, config, arrays)
    )


def _by_place(prefix, head, dropped):
    """Returns which array outside the ViT may precede, or replace, its head."""
    beside = [n for n, (_, why) in dropped.items() if why.startswith(OUTSIDE)]
    if not head.startswith(prefix) and beside:
        return f"{beside[0]} is beside {head}, and may stand before it"
    second = [n for n in beside if re.search(r"(^|[./])(head|classifier|fc)\b", n)]
    return f"{second[0]} may stand in the place of {head}" if second else ""


def _by_layers(before_head, dropped):
    """Returns which other layers take part in the ViT's predictions."""
    if before_head:
        return f"{' and '.join(before_head)} stand before the classifier"
    second = (why for n, (_, why) in dropped.items() if re.search(_SECOND, n))
    why = next(second, "")
    average = "its predictions are the average of two classifiers, one of them"
    return f"{average} {why}" if why else ""


def _by_outputs(family, config, arrays):
    """Returns what the head's outputs are if they are not classes."""
    outputs, problem = arrays["head/kernel"].shape[-1], _problem(config)
    if problem == "regression" or (outputs == 1 and not problem.startswith("multi")):
        return f"its head is a regression (outputs: {outputs}), which has no classes"
    named = config.get("id2label") or config.get("label_names")
    clip = family.name == "CLIP" or "clip" in str(config.get("architecture"))
    may_project = (clip or family.name == "EVA") and not named
    has_bias = np.any(arrays.get("head/bias", 0))
    if may_project and (outputs in _EMBEDDINGS or not has_bias):
        return f"its head is CLIP's projection to {outputs} features, no classifier"
    return ""


def _problem(config):
    """Returns `problem_type` of a config of transformers; "" without one."""
    return str(config.get("problem_type", ""))
