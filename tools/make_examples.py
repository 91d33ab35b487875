"""Makes examples/docstrings.csv: first paragraphs of docstrings of the standard library, each with what it describes.

python tools/make_examples.py

The columns are `text` and `label`: class, function or module. A text keeps its line ends. One that is too short to say
what it describes, or that describes things of two kinds, is left out. The file in the repository was made by Python
3.11, and another Python makes a slightly different one.
"""

import ast
import collections
import csv
from pathlib import Path

from transformer_zoo.data.stdlib import documents, rank

PER_KIND = 300
LENGTHS = range(24, 200)  # characters
FEWEST_WORDS = 4
KINDS = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}


def examples() -> list[tuple[str, str]]:
    """Texts and their labels, the same number of each, in the order of the texts' hashes."""
    kinds: dict[str, set[str]] = collections.defaultdict(set)
    for document in documents():
        if document["kind"] == "code":
            for node in ast.walk(ast.parse(document["text"])):
                text = (ast.get_docstring(node) or "").split("\n\n")[0].strip() if type(node) in KINDS else ""
                if len(text) in LENGTHS and len(text.split()) >= FEWEST_WORDS and text[0].isupper() and text.isascii():
                    kinds[text].add(KINDS[type(node)])
    found: dict[str, list[str]] = collections.defaultdict(list)
    for text in sorted(kinds, key=rank):
        if len(kinds[text]) == 1:
            found[min(kinds[text])].append(text)
    chosen = [(text, label) for label, texts in found.items() for text in texts[:PER_KIND]]
    return sorted(chosen, key=lambda example: rank(example[0]))


if __name__ == "__main__":
    path = Path(__file__).parent.parent / "examples" / "docstrings.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("text", "label"), *examples()])
    print(f"{path} is written")
