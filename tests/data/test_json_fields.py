"""Values of JSON are exact or refused: what each type becomes."""

import json

import pytest

from kmax_tf import errors
from kmax_tf.data import json_fields


def read(function, value):
    return function({"x": json.loads(value)}, "x", "a.json: here")


@pytest.mark.parametrize("value, expected", [("0", 0), ("1", 1), ("true", 1), ("false", 0)])
def test_flags(value, expected):
    assert read(json_fields.flag, value) is bool(expected)
    assert read(json_fields.flag, json.dumps(float(expected))) is bool(expected)


WRONG = [
    '""',
    '"0"',
    '"1"',
    '"false"',
    '"true"',
    "2",
    "-1",
    "0.5",
    "NaN",
    "null",
    "[]",
    "[1]",
    "{}",
]


@pytest.mark.parametrize("value", WRONG)
def test_what_is_no_flag_is_refused(value):
    with pytest.raises(errors.InputError, match=r'a\.json: here: field "x" must be 0 or 1, found'):
        read(json_fields.flag, value)


@pytest.mark.parametrize("value, expected", [("7", 7), ("7.0", 7), ("-0.0", 0), ("1e3", 1000)])
def test_integers(value, expected):
    found = read(json_fields.integer, value)
    assert found == expected and type(found) is int
    assert read(json_fields.identity, value) == str(expected)


@pytest.mark.parametrize("value", ['"7"', "7.5", "true", "false", "NaN", "Infinity", "null", "[7]"])
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(errors.InputError, match=r'a\.json: here: field "x" must be int, found'):
        read(json_fields.integer, value)


@pytest.mark.parametrize("value", ["a\u202fb", "\u5199\u3000", "x\u00a0y", "e\u0301", "\U0001f600"])
def test_names_of_any_script(value):
    assert json_fields.text({"x": value}, "x", "") == value


@pytest.mark.parametrize("value", ["a\nb", "\0", "a\x7f", "\x85", "caf\udce9"])
def test_names_with_control_characters_or_undecodable_bytes_are_refused(value):
    with pytest.raises(errors.InputError, match=r'here: "x" is .*; rename it') as error:
        json_fields.text({"x": value}, "x", "here")
    assert str(error.value).isascii() and "\n" not in str(error.value)
