"""Results of evaluations as a run has them: their files, and their numbers in words."""

import json
from collections.abc import Mapping

from sparse_tube_vit import storage
from sparse_tube_vit.log import log


def read_evaluations(directory) -> dict[str, dict]:
    """Returns the results of evaluations in a directory, by the stems of their files.

    Other files are skipped with a warning.

    Args:
        directory: `evaluations` of a work directory, or another one that `evaluate`
            wrote to, local or gs://. It may not exist.
    """
    results = {}
    for path in sorted(storage.entries(directory)):
        if path.suffix != ".json" or path.name[0] == ".":
            continue
        try:
            result = json.loads(path.read_text())
            if "step" not in result or not isinstance(result, dict):
                raise ValueError("it has no step")
        except (ValueError, TypeError) as error:
            log.warning("%s is skipped, it holds no evaluation: %s", path, error)
            continue
        results[path.stem] = result
    return results


def accuracies_in_words(result: Mapping) -> str:
    """Returns the measured accuracies, as "Top-1 71.2%, Top-5 93.4%".

    Args:
        result: The contents of a result's JSON file.
    """
    names = {"top1": "Top-1", "top5": "Top-5", "mAP": "mAP"}
    found = {name: result[key] for key, name in names.items() if key in result}
    return ", ".join(f"{name} {value:.1%}" for name, value in found.items())


def views_in_words(protocol: Mapping) -> str:
    """Returns the views of a video and how their scores are combined, if by maximum.

    Args:
        protocol: Of a result, or the contents of its JSON file.
    """
    maximum = "maximum of " if protocol["combine_views"] == "max" else ""
    return f"{maximum}{protocol['temporal_views']}x{protocol['spatial_views']}"


def tokens_in_words(protocol: Mapping) -> str:
    """Returns the tokens of a view, and how many times those of training they are.

    Args:
        protocol: Of a result, or the contents of its JSON file.
    """
    tokens = protocol["tokens"]
    times = tokens / protocol["training_tokens"]
    if times == 1:
        return f"{tokens} tokens"
    digits = 1 if times > 1 else 2
    return f"{tokens} tokens, {times:.{digits}f} times as many as in training"
