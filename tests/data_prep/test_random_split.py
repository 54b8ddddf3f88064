"""The random split: seeded, of the wanted size, with copies on one side."""

import collections

import pytest

from data_prep import random_split
from kmax_tf import commands, errors


def test_size_and_seed():
    digests = [str(k) for k in range(664)]
    first = random_split.choose_validation(digests, 0.15, 0)
    assert sum(first) == 100
    assert first == random_split.choose_validation(digests, 0.15, 0)
    assert first != random_split.choose_validation(digests, 0.15, 1)


def test_copies_are_on_one_side():
    digests = [str(k // 3) for k in range(60)] + [str(k) for k in range(100, 140)]
    for seed in range(20):
        chosen = random_split.choose_validation(digests, 0.2, seed)
        sides = collections.defaultdict(set)
        for digest, is_val in zip(digests, chosen):
            sides[digest].add(is_val)
        assert all(len(side) == 1 for side in sides.values())
        assert 18 <= sum(chosen) <= 20


def test_no_side_is_empty():
    assert sum(random_split.choose_validation(["a", "b"], 0.01, 0)) == 1
    assert sum(random_split.choose_validation(["a", "b"], 0.99, 0)) == 1
    for digests in (["a"], ["a", "a"]):
        with pytest.raises(errors.InputError, match="too few for --val_share 0.5"):
            random_split.choose_validation(digests, 0.5, 0)


def test_wrong_flags_are_named_before_anything_is_read(tmp_path):
    for share in (0, 1, -1, float("nan")):
        with pytest.raises(errors.InputError, match="choose a number between 0 and 1"):
            random_split.check(share, 0)
    command = ["prepare", "mask_folders", "--source", str(tmp_path / "nowhere"), "--out", "out"]
    for flag, value in (("--seed", "-1"), ("--val_share", "2")):
        with pytest.raises(SystemExit, match=f"^error: {flag} {value}.*: choose a .*number"):
            commands.main([*command, flag, value])
