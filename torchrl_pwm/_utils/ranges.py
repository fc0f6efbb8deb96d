"""Ranges and choices of options, and the sentences that refuse what lies outside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Number = int | float


@dataclass(frozen=True)
class Range:
    """What a number may be.

    Args:
        least, most: its bounds, which it may take; None for none.
        above, below: bounds that it may not take.
        whole: whether it is a whole number.
        infinite: whether infinity is within it.
    """

    least: Number | None = None
    most: Number | None = None
    above: Number | None = None
    below: Number | None = None
    whole: bool = False
    infinite: bool = False

    def __contains__(self, value: object) -> bool:
        if getattr(value, "shape", None) == ():
            value = value.item()  # type: ignore[attr-defined]  # a number of numpy or torch
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            return False
        if (self.whole and value != int(value)) if math.isfinite(value) else (self.whole or not self.infinite):
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        limits = " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)
        number = "a whole number" if self.whole else "a number"
        joint = " of " if limits.startswith("at") else " "
        return f"{number}{joint}{limits}" if limits else number


COUNT, COUNT_OR_NONE = Range(least=1, whole=True), Range(least=0, whole=True)
NORM = Range(above=0, infinite=True)
SHARE, SOME_SHARE, CHANCE = Range(least=0, most=1), Range(above=0, most=1), Range(least=0, below=1)
POSITIVE, NOT_NEGATIVE = Range(above=0), Range(least=0)


def check_range(allowed: Range, **values: Any) -> None:
    """Refuses values outside a range.

    Raises:
        ValueError: naming the first of them.
    """
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(f"{name} must be {allowed}, found {value!r}.")


def check_choice(choices: Sequence[str], **values: Any) -> None:
    """Refuses values that are not among some.

    Raises:
        ValueError: naming the first of them.
    """
    for name, value in values.items():
        if value not in choices:
            named = " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
            raise ValueError(f"{name} must be {named}, found {value!r}")


def check_option(name: str, value: Any, rule: dict[str, Any]) -> None:
    """Refuses a value of a configuration that its rule does not allow.

    Args:
        name: of the option.
        value: a number, flag or name; or a list, of which each entry must be allowed.
        rule: ``choices``, ``flag``, or the fields of a :class:`Range`; with ``none`` it may be left out, with ``or`` it
            may be one word more, with ``list`` it may be a list.

    Raises:
        ValueError: naming the option.
    """
    rule = dict(rule)
    optional, word, many = rule.pop("none", False), rule.pop("or", None), rule.pop("list", False)
    if (value is None and optional) or (word is not None and value == word):
        return
    if isinstance(value, list):
        if not many:
            raise ValueError(f"{name} must be one value, found {value}.")
        for entry in value:
            check_option(name, entry, {**rule, "or": word})
    elif "choices" in rule:
        check_choice([*(["null"] if optional else []), *rule["choices"]], **{name: value})
    elif "flag" in rule:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, found {value!r}.")
    elif value not in (allowed := Range(**rule)):
        further = "".join([", or null" if optional else "", f", or {word}" if word else ""])
        raise ValueError(f"{name} must be {allowed}{further}, found {value!r}.")


def check_options(options: Mapping[str, Any], limits: Mapping[str, dict[str, Any]]) -> None:
    """Compares the options of a configuration with what they may be.

    Args:
        options: nested by the dots in their names.
        limits: rules, see :func:`option_rule`.

    Raises:
        ValueError: for the first value outside.
    """
    for name, value in option_values(options):
        if (rule := option_rule(name, limits)) is not None:
            check_option(name, value, rule)


def option_values(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of every option, without those that are missing or refer to others."""
    nodes: list[tuple[str, Any]] = list(options.items())
    while nodes:
        name, value = nodes.pop(0)
        if isinstance(value, Mapping):
            nodes += [(f"{name}.{key}", entry) for key, entry in value.items()]
        elif not (isinstance(value, str) and (value == "???" or value.startswith("${"))):
            yield name, value


def option_rule(name: str, limits: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """What an option may be: the rule of the longest end of its name that has one, with ``*`` for its last part."""
    parts = name.split(".")
    ends = 1 if parts[0] in ("env", "training_env") else len(parts)  # an env's own options may have any name
    for first in range(ends):
        for end in (parts[first:], [*parts[first:-1], "*"]):
            if end != ["*"] and (rule := limits.get(".".join(end))) is not None:
                return rule
    return None
