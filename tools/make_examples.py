"""Makes the files in examples/ of docstrings of the standard library.

python tools/make_examples.py

docstrings.csv has first paragraphs of docstrings, each with what it describes. The columns are `text` and `label`:
class, function or module. A text keeps its line ends. One that is too short to say what it describes, or that describes
things of two kinds, is left out.

conversations.jsonl has conversations: each asks what some functions or classes of a public module are for, and the
answers are the first paragraphs of their docstrings.

The files in the repository were made by Python 3.11, and another Python makes slightly different ones.
"""

import ast
import collections
import csv
import json
from pathlib import Path

from transformer_zoo.data.stdlib import documents, rank

PER_KIND = 300
LENGTHS = range(24, 200)  # characters
FEWEST_WORDS = 4
CONVERSATIONS, MOST_OF_A_MODULE = 240, 2
PROGRAMS = ("idlelib", "lib2to3", "turtle", "turtledemo", "distutils", "msilib", "ensurepip", "venv")  # no libraries
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


def conversations() -> list[list[dict[str, str]]]:
    """Conversations of up to three questions and answers about one module, in the order of the modules' hashes."""
    asked: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for document in documents():
        module = document["path"].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        parts = module.split(".")
        if document["kind"] == "code" and parts[0] not in PROGRAMS and not any(part.startswith("_") for part in parts):
            for node in ast.parse(document["text"]).body:
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split()) if type(node) in KINDS else ""
                if text[:1].isupper() and text[-1] == "." and len(text) in LENGTHS and text.isascii():
                    if not node.name.startswith("_"):
                        kind = "class" if isinstance(node, ast.ClassDef) else "function"
                        asked[module].append((f"the {kind} {node.name}", text))
    found = []
    for module in sorted(asked, key=rank):
        pairs = sorted(asked[module], key=lambda pair: rank(f"{module} {pair[0]}"))
        for first in range(0, min(len(pairs), 3 * MOST_OF_A_MODULE), 3):
            messages = []
            for what, text in pairs[first : first + 3]:
                question = f"And {what}?" if messages else f"What is {what} of Python's module {module} for?"
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            found.append(messages)
    return found[:CONVERSATIONS]


if __name__ == "__main__":
    folder = Path(__file__).parent.parent / "examples"
    with (folder / "docstrings.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("text", "label"), *examples()])
    with (folder / "conversations.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": messages}) + "\n" for messages in conversations())
    print(f"the files in {folder} are written")
