import json

import numpy as np
import pytest

from utils.settings import SEED, choice, number, optional, several, whole_number


@pytest.mark.parametrize(
    "check, value, plain",
    [
        (whole_number(), np.int64(64), 64),
        (whole_number(0), np.uint8(0), 0),
        (whole_number(0), True, 1),
        (number(), np.float32(0.5), 0.5),
        (number(), np.int32(3), 3),
        (number(low_too=True), 0, 0),
        (number(below=1.0), 0.999, 0.999),
        (choice("a", "b"), np.str_("b"), "b"),
        (optional(number()), None, None),
        (several(number()), np.array([0.5, 2]), (0.5, 2.0)),
        (SEED, np.uint16(7), 7),
        (SEED, None, None),
    ],
)
def test_numbers_of_numpy_become_plain(check, value, plain):
    found = check("it", value)
    assert found == plain and type(found) is type(plain)
    json.dumps(found)


@pytest.mark.parametrize(
    "check, value, expected",
    [
        (whole_number(), 2.5, "2.5, expected a whole number of at least 1"),
        (whole_number(), 64.0, "64.0, expected a whole number"),
        (whole_number(), "64", "'64', expected a whole number"),
        (whole_number(), 0, "0, expected a whole number of at least 1"),
        (whole_number(), None, "None, expected a whole number"),
        (whole_number(1, 5), 6, "at least 1 and at most 5"),
        (number(), 0, "0, expected a number above 0"),
        (number(), float("nan"), "nan, expected a number above 0"),
        (number(), np.inf, "inf, expected a number above 0"),
        (number(), "1", "'1', expected a number"),
        (number(), True, "True, expected a number"),
        (number(below=1.0, low_too=True), 1, "1, expected a number of at least 0 and below 1"),
        (number(), 1j, "1j, expected a number"),
        (choice("a", "b"), "c", "'c', expected one of a, b"),
        (choice("a", "b"), ["a"], "expected one of a, b"),
        (several(number()), (), "empty; give at least one value"),
        (several(number()), 5, "5, expected a sequence"),
        (several(number()), (1, -1), "-1, expected a number above 0"),
        (SEED, -1, "-1, expected a whole number of at least 0"),
        (SEED, 2**31, "at most"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_value(check, value, expected):
    with pytest.raises(ValueError, match=f"^it is .*{expected}"):
        check("it", value)
