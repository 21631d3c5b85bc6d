"""Hyperparameters: what each may be, said once, beside its default."""

import dataclasses
import math
import numbers
from collections.abc import Callable

MAX_SEED = 2**31 - 1

Check = Callable[[str, object], object]
"""From a setting's name and value to the value as plain Python; ValueError where it is refused."""


def setting(default: object, check: Check, **how) -> dataclasses.Field:
    """A hyperparameter as a field of a detector, which is a dataclass.

    how: more of `dataclasses.field`'s arguments.
    """
    return dataclasses.field(default=default, metadata={"check": check}, **how)


def whole_number(low: int = 1, high: int | None = None) -> Check:
    """A whole number of at least `low` and at most `high`, of Python or NumPy."""

    def check(name, value):
        whole = isinstance(value, numbers.Integral) and (low == 0 or not isinstance(value, bool))
        if not whole or value < low or (high is not None and value > high):
            most = "" if high is None else f" and at most {high}"
            raise ValueError(
                f"{name} is {_shown(value)}, expected a whole number of at least {low}{most}"
            )
        return int(value)

    return check


def number(*, below: float = math.inf, low_too: bool = False) -> Check:
    """A number over 0, or from it on with low_too, and under `below`, of Python or NumPy."""

    def check(name, value):
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not real or not 0 <= value < below or (value == 0 and not low_too):
            limits = "of at least 0" if low_too else "above 0"
            limits += "" if below == math.inf else f" and below {below:g}"
            raise ValueError(f"{name} is {_shown(value)}, expected a number {limits}")
        return int(value) if isinstance(value, numbers.Integral) else float(value)

    return check


def choice(*names: str) -> Check:
    """One of some names."""

    def check(name, value):
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{name} is {_shown(value)}, expected one of {', '.join(names)}")
        return str(value)

    return check


def optional(check: Check) -> Check:
    """None, or what `check` takes."""
    return lambda name, value: None if value is None else check(name, value)


def several(check: Check) -> Check:
    """A sequence of at least one value that `check` takes, as a tuple."""

    def check_all(name, values):
        try:
            values = tuple(values)
        except TypeError:
            raise ValueError(f"{name} is {_shown(values)}, expected a sequence") from None
        if not values:
            raise ValueError(f"{name} is empty; give at least one value")
        return tuple(check(name, value) for value in values)

    return check_all


def _shown(value):
    return repr(value.tolist() if hasattr(value, "tolist") else value)  # NumPy's as plain Python


SEED = optional(whole_number(0, MAX_SEED))
"""A seed that NumPy and Keras take, or None for a random one."""
