"""Trees of parameters as flat dictionaries of paths, and rules that match every path exactly once.

A parameter is named by its path, `blocks/attention/query/kernel`. Sharding, freezing and weight decay are all tables of
regular expressions over such paths; a path without a rule, or with two, is an error.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import traverse_util

Tree = dict[str, Any]


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as one: `{"blocks": {"norm": {"scale": x}}}` becomes `{"blocks/norm/scale": x}`."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def map_paths(function: Callable[..., Any], tree: Mapping[str, Any], *rest: Mapping[str, Any]) -> Tree:
    """The tree of `function(path, leaf, *leaves_of_rest)`."""
    others = [flatten(other) for other in rest]
    return unflatten({path: function(path, leaf, *(o[path] for o in others)) for path, leaf in flatten(tree).items()})


def match(rules: Iterable[tuple[str, Any]], paths: Iterable[str], what: str = "parameter") -> dict[str, Any]:
    """The value for each path of the one rule whose regular expression matches the whole path.

    Raises:
        ValueError: some paths match no rule, or more than one; the message lists them all.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    hits = {path: [(rule.pattern, value) for rule, value in compiled if rule.fullmatch(path)] for path in paths}
    none = [path for path, found in hits.items() if not found]
    many = [f"{path}  ({', '.join(pattern for pattern, _ in found)})" for path, found in hits.items() if len(found) > 1]
    if none or many:
        lines = [f"  no rule:  {path}" for path in none] + [f"  {what} with several rules:  {path}" for path in many]
        raise ValueError(f"every {what} must match exactly one rule:\n" + "\n".join(lines))
    return {path: found[0][1] for path, found in hits.items()}


def select(patterns: Iterable[str], paths: Iterable[str]) -> frozenset[str]:
    """The paths that at least one pattern matches in full.

    Raises:
        ValueError: a pattern matches nothing.
    """
    paths = tuple(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        found = [path for path in paths if re.fullmatch(pattern, path)]
        if not found:
            raise ValueError(f"the pattern {pattern!r} matches no parameter.{nearest(pattern, paths)}")
        chosen.update(found)
    return frozenset(chosen)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the most similar known name, or nothing if none is similar."""
    close = closest(name, known)
    return f" Did you mean {close!r}?" if close else ""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The most similar known name, if there is one that is similar."""
    known = list(known)
    return respelt(name, known) or next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)


def respelt(name: str, known: Iterable[str]) -> str | None:
    """The known name from which another differs only in case, spaces, `_` or `-`, if there is one."""
    plain = lambda text: re.sub(r"[\s_-]", "", text).casefold()
    return next((other for other in known if plain(other) == plain(name)), None)
