"""The data set of functions and their docstrings."""

import ast

import pytest

from transformer_zoo.data import sources, stdlib
from transformer_zoo.data.stdlib_docstrings import as_words, divided


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    return {
        split: list(sources.source("stdlib_docstrings", split, data_dir=folder)) for split in ("train", "validation")
    }


def test_pairs_are_functions_and_what_they_do(splits):
    pairs = splits["train"] + splits["validation"]
    assert 3000 < len(pairs) < 10000 and len(splits["validation"]) > 50
    for pair in pairs:
        assert pair.keys() == {"path", "name", "name_words", "source", "source_words", "target"}
        assert pair["target"] and "\n" not in pair["target"] and pair["target"] == pair["target"].strip()
    for pair in pairs[::20]:
        (function,) = ast.parse(pair["source"]).body
        assert function.name == pair["name"].rpartition(".")[2] and ast.get_docstring(function) is None
    by_name = {(pair["path"], pair["name"]): pair for pair in pairs}
    raw = by_name["json/decoder.py", "JSONDecoder.raw_decode"]
    assert raw["target"].startswith("Decode a JSON document from ``s``") and '"""' not in raw["source"]
    assert raw["name_words"] == "raw decode" and raw["source_words"].startswith("def raw decode self s idx 0 ")
    assert "obj, end = self.scan_once(s, idx)" in raw["source"]


def test_split_is_that_of_the_library_and_nothing_is_on_both_sides(splits):
    for split, held in (("train", False), ("validation", True)):
        assert all(stdlib.held_out(pair["path"]) == held for pair in splits[split])
    for side in ("source", "target"):
        texts = [pair[side] for pairs in splits.values() for pair in pairs]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('def f(x):\n    "Say é."\n    return x\n', ("def f(x):\n    return x\n", "Say é.")),
        (
            'async def f():\n    """\n    Wait\n    long.\n\n    And more.\n    """\n    # why\n    await g()\n',
            ("async def f():\n    # why\n    await g()\n", "Wait long."),
        ),
        (
            '@d\ndef f():\n    """Do."""  # not code\n    def g():\n        """Kept."""\n    return g\n',
            None,
        ),
        ('def f():\n    "Only this."\n', None),
        ("def f():\n    return 1\n", None),
        ('def f():\n    ""\n    return 1\n', None),
        ('def f(): "One line."; return 1\n', None),
        ('def f():\n    """Inner."""\n    def g():\n        """Kept."""\n    return g\n',
         ('def f():\n    def g():\n        """Kept."""\n    return g\n', "Inner.")),
    ],
)  # fmt: skip
def test_division(text, parts):
    assert divided(text) == parts


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raw_decode", "raw decode"),
        ("def f(self, maxLen=10):\n    return 'A b.'", "def f self max len 10 return a b"),
        ("__init__", "init"),
        ("assertRaisesRegex", "assert raises regex"),
        ("getHTTPCode2", "get http code 2"),
        ("x", "x"),
        ("_", ""),
    ],
)
def test_code_as_words(code, words):
    assert as_words(code) == words
