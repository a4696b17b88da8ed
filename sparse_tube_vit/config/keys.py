"""Keys of a configuration, each with its default, rule and meaning."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from sparse_tube_vit.errors import TubeViTError


class InvalidConfig(TubeViTError, ValueError):
    """A configuration that cannot work."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Values that a key may have.

    Attributes:
        accepts: Returns whether a value is allowed.
        words: The rule in words, after "it must be".
        choices: All allowed values, where the rule lists them.
    """

    accepts: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()

    def problem(self, name: str, value) -> str | None:
        """Returns what is wrong with the value of a key; None for an allowed value."""
        try:
            fits = self.accepts(value)
        except TypeError:  # not comparable with a number
            fits = False
        return None if fits else f"{name} is {value!r}: it must be {self.words}."


#: Default of keys that `stream` and `evaluation` must be given.
REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        default: Value where a config file sets none; None for a key that is open;
            `REQUIRED` for one that must be set.
        meaning: One or two sentences.
        rule: Allowed values; None where the type alone decides.
        value_type: Type of the values, where the default does not show it.
    """

    default: Any
    meaning: str
    rule: Rule | None = None
    value_type: type | None = None


def one_of(*choices: str) -> Rule:
    """Returns the rule of a key with named choices."""
    words = ", ".join(choice or "empty" for choice in choices)
    return Rule(choices.__contains__, f"one of {words}", choices)


def whole(least: int, most: int | None = None) -> Rule:
    """Returns the rule of whole numbers from `least` on, up to `most` if given."""
    words = f"of at least {least}" if most is None else f"from {least} to {most}"
    return Rule(
        lambda x: type(x) is int and x >= least and (most is None or x <= most),
        f"a whole number {words}",
    )


def between(least: float, greatest: float) -> Rule:
    """Returns the rule of numbers from `least` to `greatest`, both allowed."""
    return Rule(lambda x: least <= x <= greatest, f"between {least} and {greatest}")


#: Names become parts of file names, parameters and metrics.
NAME = Rule(
    lambda x: re.fullmatch(r"[\w-][\w.-]{0,99}", x) is not None,
    "1 to 100 letters, digits, _, - and ., of which . is not the first, as in "
    "ucf101_split1",
)
TEXT = Rule(lambda x: isinstance(x, str), "text")
TEXTS = Rule(
    lambda x: isinstance(x, tuple) and all(isinstance(part, str) for part in x),
    "a tuple of texts",
)
SWITCH = Rule(lambda x: isinstance(x, bool), "True or False")
COUNT = whole(1)
NOT_NEGATIVE = Rule(lambda x: 0 <= x < math.inf, "at least 0 and finite")
POSITIVE = Rule(lambda x: 0 < x < math.inf, "above 0 and finite")
SHARE = between(0, 1)
RATE = Rule(lambda x: 0 <= x < 1, "at least 0 and below 1")
DTYPE = one_of("float32", "bfloat16")
