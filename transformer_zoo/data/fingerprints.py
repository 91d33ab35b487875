"""Whether the documents of a split are still those that a run began with."""

import hashlib
import json
from typing import Any

import numpy as np

from transformer_zoo.data.documents import PIECE, Source

STRETCHES, DOCUMENTS = 64, 64
"""Of a split with more documents than their product, this number of evenly spaced stretches of documents is read."""
BYTES = 1 << 28
"""No more is read than this, and the document in which it ends."""


def fingerprint(source: Source) -> dict[str, Any]:
    """The number of documents, and a hash of their contents in their order, as JSON; where the files are, does not
    matter.

    A source that knows the hash of all its documents, since it divided them by their contents, gives that. Of another,
    not more than `STRETCHES * DOCUMENTS` documents and `BYTES` are read: a document that is added or left out is always
    seen, by their number, and one that was edited only if it is among those that are read.
    """
    count = len(source)
    if (known := source.fingerprint) is not None:
        return {"documents": count, "contents": known}
    digest, left, pieces = hashlib.sha256(), BYTES, source.cut(PIECE)
    for index in _read(len(pieces)):
        content = json.dumps(dict(pieces[index]), sort_keys=True, default=_plain).encode() + b"\n"
        digest.update(content)
        if (left := left - len(content)) < 0:
            break
    return {"documents": count, "contents": digest.hexdigest()[:32]}


def _read(count: int) -> list[int]:
    """The documents to read of so many."""
    if count <= STRETCHES * DOCUMENTS:
        return list(range(count))
    starts = np.linspace(0, count - DOCUMENTS, STRETCHES).astype(int)
    return sorted({start + i for start in starts.tolist() for i in range(DOCUMENTS)})


def _plain(value: Any) -> Any:
    """What JSON lacks."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)


def difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What has changed between two fingerprints, in words; None if nothing has."""
    if before == now:
        return None
    if before.get("documents") != now["documents"]:
        return f"{before.get('documents')} documents then, {now['documents']} now"
    return f"{now['documents']} documents then and now, and some have other contents"
