"""Parameters by path, and rules that match every path exactly once."""

import pytest

from transformer_zoo import trees

TREE = {"blocks": {"norm": {"scale": 1, "bias": 2}, "mlp_up": {"kernel": 3}}, "head": {"embedding": 4}}
FLAT = {"blocks/norm/scale": 1, "blocks/norm/bias": 2, "blocks/mlp_up/kernel": 3, "head/embedding": 4}


def test_flat_and_back():
    assert trees.flatten(TREE) == FLAT
    assert list(trees.flatten(TREE)) == list(FLAT)
    assert trees.unflatten(FLAT) == TREE
    assert trees.flatten({}) == {} and trees.unflatten({}) == {}


def test_map_paths():
    other = {path: 10 * value for path, value in reversed(FLAT.items())}
    result = trees.map_paths(lambda path, one, two: (path, one + two), TREE, trees.unflatten(other))
    assert trees.flatten(result) == {path: (path, 11 * value) for path, value in FLAT.items()}


def test_match_gives_each_path_its_one_rule():
    rules = [(r".*/(scale|bias)", "norm"), (r".*/kernel", "kernel"), (r"head/embedding", "head"), (r"unused", "no")]
    expected = ["norm", "norm", "kernel", "head"]
    assert trees.match(rules, FLAT) == dict(zip(FLAT, expected))


def test_match_is_of_the_whole_path():
    with pytest.raises(ValueError, match="no rule:  head/embedding"):
        trees.match([(r"head", 0), (r"embedding", 0), (r"blocks/.*", 0)], FLAT)


def test_match_lists_everything_that_is_wrong():
    with pytest.raises(ValueError) as caught:
        trees.match([(r".*/scale", 0), (r"blocks/norm/.*", 1)], FLAT)
    assert str(caught.value).splitlines() == [
        "every parameter must match exactly one rule:",
        "  no rule:  blocks/mlp_up/kernel",
        "  no rule:  head/embedding",
        "  parameter with several rules:  blocks/norm/scale  (.*/scale, blocks/norm/.*)",
    ]
    with pytest.raises(ValueError, match="every batch must match"):
        trees.match([], FLAT, what="batch")


def test_select():
    assert trees.select([r".*/bias", r"blocks/norm/.*"], FLAT) == {"blocks/norm/scale", "blocks/norm/bias"}
    assert trees.select([], FLAT) == frozenset()
    assert trees.select([r".*"], iter(FLAT)) == set(FLAT)


def test_select_refuses_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match=r"'head/embeding' matches no parameter. Did you mean 'head/embedding'\?"):
        trees.select([r".*/bias", "head/embeding"], FLAT)
    with pytest.raises(ValueError, match="'head' matches no parameter"):  # the whole path, not a part of it
        trees.select(["head"], FLAT)


def test_nearest():
    assert trees.nearest("gtp2", ["bert", "gpt2"]) == " Did you mean 'gpt2'?"
    assert trees.nearest("zzz", ["bert", "gpt2"]) == "" == trees.nearest("x", [])
    assert trees.nearest("IN-PUT", ["OUTPUT", "in put"]) == " Did you mean 'in put'?"
