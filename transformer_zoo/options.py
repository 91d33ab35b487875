"""Options of a command line that do not exist, and those that were probably meant."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence


def names_of(kind: type) -> list[str]:
    """The options for the fields of a dataclass."""
    return [_spelt(field.name) for field in dataclasses.fields(kind)]


def unknown(arguments: Sequence[str], known: Sequence[str], theirs: Mapping[str, str] | None = None) -> str | None:
    """What is wrong with the first unknown option, with the nearest known one; None if all are known.

    Args:
        arguments: of the command line. What follows `--` is left to others.
        known: all options, without the dashes in front, spelt with `-`.
        theirs: names of other libraries, spelt with `_`, to the options here, possibly with a value.
    """
    arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    given = [text[2:].partition("=")[0] for text in arguments if text.startswith("--")]
    found = next((name for name in given if _spelt(name) not in {*known, "help"}), None)
    return None if found is None else f"there is no option --{found}.{_proposal(_spelt(found), known, theirs or {})}"


def _spelt(name: str) -> str:
    return name.replace("_", "-")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _proposal(name: str, known: Sequence[str], theirs: Mapping[str, str]) -> str:
    """The options that may be meant: what other libraries call so, the same name in another part, or a similar name."""
    from transformer_zoo.trees import closest  # brings jax, which is not needed for --help

    word = _last(name)
    translated = theirs.get(word.replace("-", "_"))
    meant = [*([translated] if translated else []), *(option for option in known if _last(option) == word)]
    if not meant:
        similar = closest(word, map(_last, known))
        meant = [close] if (close := closest(name, known)) else [option for option in known if _last(option) == similar]
    return f" Did you mean {_either(f'--{option}' for option in dict.fromkeys(meant))}?" if meant else ""


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
