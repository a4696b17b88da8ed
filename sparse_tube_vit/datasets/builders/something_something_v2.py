"""`something_something_v2`: Something-Something V2 from its official JSON files.

The annotations directory holds train.json, validation.json, labels.json and perhaps
test.json, with or without the prefix `something-something-v2-`. Labels are the numbers
that labels.json gives to the 174 templates. The test split has no labels and is left
out, unless test-answers.csv (lines of `id;template`) is there. Clips are called `<id>`,
in any folders.
"""

import json
import pathlib

from sparse_tube_vit.datasets.builders import builder
from sparse_tube_vit.datasets.builders.annotations import (
    BadAnnotations,
    Entry,
    check_class_count,
    find_file,
    list_clips,
    read_text,
)


class SomethingSomethingV2(builder.Builder):
    """Something-Something V2, of the listing that `read` returns."""

    name = "something_something_v2"
    kind = "video"

    @classmethod
    def read(cls, videos, annotations) -> builder.Listing:
        """Lists the clips of train, validation and, if there are answers, test.

        Clips without a file are in `left_out`. A labels.json of fewer classes adds a
        note.

        Raises:
            BadAnnotations: A file is missing or malformed, a template is not one of
                labels.json, or a clip has two labels.
            MissingVideos: No clip is there, or several files match one.
        """
        labels = _file(annotations, "labels")
        numbers = _read_classes(labels)
        notes = check_class_count(labels, len(numbers), cls.name)
        entries = []
        for split in ("train", "validation"):
            for where, entry in _read_list(_file(annotations, split)):
                template = entry.get("template")
                if not isinstance(template, str):
                    raise BadAnnotations(f"{where} has no template")
                label = template.replace("[", "").replace("]", "").strip()
                entries.append(_entry(where, split, entry["id"], label, numbers))
        answers = pathlib.Path(annotations) / "test-answers.csv"
        if answers.is_file():
            for where, name, label in _read_answers(answers):
                entries.append(_entry(where, "test", name, label, numbers))
        elif test := _find(annotations, "test"):
            count = sum(1 for _ in _read_list(test))
            notes.append(f"left out {count} clips of test that have no label")
        class_names = sorted(numbers, key=numbers.get)
        return list_clips(videos, entries, class_names, notes=notes)


def _entry(where, split, name, label, numbers) -> Entry:
    if label not in numbers:
        raise BadAnnotations(f"{where}: {label!r} is not in labels.json")
    return Entry(where, split, name, label, (name,))


def _find(annotations, name: str) -> pathlib.Path | None:
    pattern = rf"(something-something-v2-)?{name}\.json"
    return find_file(annotations, pattern, f"{name}.json")


def _file(annotations, name: str) -> pathlib.Path:
    path = _find(annotations, name)
    if path is None:
        raise BadAnnotations(
            f"no {name}.json in {annotations}; give the directory of the official"
            " JSON files"
        )
    return path


def _read_json(path: pathlib.Path, kind: type):
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise BadAnnotations(f"{path}:{error.lineno}: {error.msg}") from None
    if not isinstance(content, kind):
        raise BadAnnotations(f"{path}:1: expected a {kind.__name__}")
    return content


def _read_classes(path: pathlib.Path) -> dict[str, int]:
    """Returns the number of each template."""
    numbers = {}
    for template, number in _read_json(path, dict).items():
        if not str(number).isdecimal():
            raise BadAnnotations(f"{path}: {template!r} has no number but {number!r}")
        numbers[template.strip()] = int(number)
    if not numbers or sorted(numbers.values()) != list(range(len(numbers))):
        raise BadAnnotations(f"{path}: the numbers are not 0 to {len(numbers) - 1}")
    return numbers


def _read_list(path: pathlib.Path):
    """Yields ("file: entry i", entry), ids as str."""
    for i, entry in enumerate(_read_json(path, list), start=1):
        where = f"{path}: entry {i}"
        if not isinstance(entry, dict) or entry.get("id") in (None, ""):
            raise BadAnnotations(f"{where} has no id")
        yield f"{where} (id {entry['id']})", entry | {"id": str(entry["id"])}


def _read_answers(path: pathlib.Path):
    """Yields ("file:line", id, template)."""
    for i, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            name, semicolon, label = (f.strip() for f in line.partition(";"))
            if not name or not label:
                raise BadAnnotations(f"{path}:{i}: expected `id;template`, got {line}")
            yield f"{path}:{i}", name, label
