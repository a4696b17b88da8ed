"""Arrays of a source matched to the parameters of a model, and the report of it."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from sparse_tube_vit.errors import TubeViTError

#: Why a ViT's kernel does not go to some tubes.
WHOLE_TOKENS = (
    "a ViT's kernel makes whole tokens; take tubes without space-to-depth, as set '4', "
    "or init.inflate 'none'"
)


class WeightsDoNotMatch(TubeViTError, ValueError):
    """Weights that do not fit the configured model."""


@dataclasses.dataclass
class WeightsReport:
    """Outcome for every array of a source and parameter of a model; `str` is a table.

    Attributes:
        source: Name of the source.
        loaded, resized, new: (shape, remark) of the model's parameters by name.
        dropped: (shape, remark) of the source's arrays by name.
        notes: Other differences between the two models.
    """

    source: str
    loaded: dict[str, tuple] = dataclasses.field(default_factory=dict)
    resized: dict[str, tuple] = dataclasses.field(default_factory=dict)
    new: dict[str, tuple] = dataclasses.field(default_factory=dict)
    dropped: dict[str, tuple] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self):
        lines = [f"Parameters from {self.source}"]
        for kind in ("loaded", "resized", "new", "dropped"):
            lines += [f"  {kind:8} {line}" for line in _table(getattr(self, kind))]
        return "\n".join(lines + [f"  note     {note}" for note in self.notes])


@dataclasses.dataclass
class Match:
    """A source's arrays matched to our parameters.

    Attributes:
        report: What is known so far.
        model: The source's options under the names of `config.model`.
        new: Beginnings of names of parameters that may be missing from the source.
        arrays: The arrays under our names.
        wrong: (shape, remark) of arrays and parameters without a match.
    """

    report: WeightsReport
    model: Mapping
    new: list[str]
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    wrong: dict[str, tuple] = dataclasses.field(default_factory=dict)

    def load(self, name, x, remark=""):
        """Takes an array as it is for our parameter `name`."""
        self.arrays[name] = x
        self.report.loaded[name] = x.shape, remark

    def resize(self, name, x, how):
        """Takes an array that was resized for our parameter `name`."""
        self.arrays[name] = x
        self.report.resized[name] = x.shape, how

    def drop(self, name, x, why):
        """Reports an array that is not taken, by the source's name."""
        self.report.dropped[name] = x.shape, why

    def check(self, shapes: Mapping[str, tuple], ours: Mapping) -> None:
        """Reports the parameters that are new; all others have to have an array.

        Args:
            shapes: Shapes of our parameters by name.
            ours: `config.model`.

        Raises:
            WeightsDoNotMatch: Arrays or parameters have no match, or other shapes.
                Lists all.
        """
        layers_wrong = {name.rpartition("/")[0] for name in self.wrong}
        for name, shape in shapes.items():
            if name not in self.arrays:
                if name.startswith(tuple(self.new)):
                    self.report.new[name] = shape, ""
                elif name.rpartition("/")[0] not in layers_wrong:
                    self.wrong[name] = shape, "not there"
            elif self.arrays[name].shape != shape:
                self.wrong[name] = f"{self.arrays[name].shape} is {shape} here", ""
        self.wrong |= {
            name: (x.shape, "a parameter that the model has not")
            for name, x in self.arrays.items()
            if name not in shapes
        }
        if self.wrong:
            raise WeightsDoNotMatch(
                "\n".join(
                    [
                        f"{self.report.source} does not fit config.model (depth "
                        f"{ours['depth']}, width {ours['width']}):",
                        *(f"  {line}" for line in _table(self.wrong)),
                        _advice(self.model, ours),
                    ]
                )
            )


def _table(remarks: Mapping[str, tuple]) -> list[str]:
    """Returns one line per layer, or per layer that many blocks have.

    Args:
        remarks: (shape, remark) by name. Slashes or dots separate layer and array.
    """
    layers = {}
    for name, (shape, remark) in remarks.items():
        parts = re.fullmatch(r"(.*)[/.](kernel|scale|weight|bias)", name)
        layer, leaf = parts.groups() if parts else (name, "")
        layers.setdefault((layer, remark), []).append(f"{leaf} {shape}".strip())
    lines = {}
    for (layer, remark), leaves in layers.items():
        leaves.sort(key=lambda leaf: leaf.startswith("bias"))  # after the kernel
        parts = re.fullmatch(r"(.*?)(?:(\d+)([/.].*)?)?", layer)
        line = (parts[1], parts[3] or "", ", ".join(leaves), remark)
        lines.setdefault(line, []).append(parts[2])
    return [
        f"{before}{_ranges(numbers)}{after}  {leaves}" + (f": {remark}" * bool(remark))
        for (before, after, leaves, remark), numbers in lines.items()
    ]


def _advice(theirs, ours):
    """Returns what to do about weights that do not fit."""
    keys = ("depth", "width", "mlp_dim", "heads", "gated_mlp", "pre_norm", "registers")
    wrong = [key for key in keys if theirs.get(key, ours[key]) != ours[key]]
    if not wrong:
        return "Change what the lines above name, or choose other init.weights."
    sizes = ", ".join(f"{key}={theirs[key]}" for key in wrong)
    return f"Set config.model to these sizes ({sizes}), or choose other init.weights."


def _ranges(numbers):
    """Formats ["0", "1", "2", "5"] as "0..2,5", and [None] as ""."""
    runs = []
    for n in sorted(map(int, filter(None, numbers))):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(f"{a}" if a == b else f"{a}..{b}" for a, b in runs)
