"""What the results in a file were made with: a record beside the file, so that only the same results are continued."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer_zoo import json_files, registry, trees
from transformer_zoo.prediction.reader import Input, Reader

Record = dict[str, Any]
KINDS = {"model": str, "source": str, "count": int, "inputs": str, "made_with": dict}


def file_of(output: Path) -> Path:
    """The file of the record, beside the file of the results."""
    return output.with_name(f"{output.name}.record.json")


def of(m: Any, reader: Reader, inputs: Sequence[Input], *, model: str, source: str) -> Record:
    """The record of these results. The names of model and source are for messages: their contents are compared.

    Args:
        inputs: those of the results.
        model: the name that the model was loaded by.
        source: the name of the inputs.
    """
    made_with = {
        "parameters": _digest_of_parameters(m.params),
        "tokenizer": m.tokenizer.fingerprint,
        "config": registry.as_json(m.config),
        "task": m.model.task,
        "dtype": m.model.compute.dtype,
        "settings": reader.made_with(m),
    }
    return {
        "model": model, "source": source, "count": len(inputs), "inputs": _digest_of(inputs),
        "made_with": json.loads(json.dumps(made_with, default=str)),
    }  # fmt: skip


def read(output: Path) -> Record:
    """The record of a file of results.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    file = file_of(output)
    if not file.is_file():
        raise ValueError(
            f"{output} has results, and there is no {file.name} beside it to tell what they were made with: name "
            "another file, or remove this one"
        )
    record = json_files.read(file)
    json_files.check(record, KINDS, str(file))
    if missing := KINDS.keys() - record:
        raise ValueError(f"{file} lacks {', '.join(sorted(missing))}: remove it with {output}, or name another file")
    return record


def write(output: Path, record: Record) -> None:
    """Writes the record, atomically."""
    file = file_of(output)
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def check_same(output: Path, before: Record, now: Record, inputs: Sequence[Input]) -> None:
    """Refuses to continue results that were made with something else. There may be further inputs behind the earlier
    ones.

    Raises:
        ValueError: another model, other settings or other inputs. One error lists the differences.
    """
    old, new = (_flat(record["made_with"]) for record in (before, now))
    lines = [
        f"  {name}: {_short(old.get(name))}, now {_short(new.get(name))}"
        for name in sorted(old.keys() | new)
        if old.get(name) != new.get(name)
    ]
    if before["count"] > len(inputs):
        lines.append(f"  inputs: {before['count']}, now {len(inputs)}")
    elif before["inputs"] != _digest_of(inputs[: before["count"]]):
        lines.append(f"  inputs: texts of {_short(before['source'])}, now others of {_short(now['source'])}")
    if lines:
        raise ValueError(
            f"{output} has results of {_short(before['model'])} that were made otherwise, and cannot be continued:\n"
            + "\n".join(lines)
            + "\nName another file, or remove this one to begin anew."
        )


def _flat(made_with: Mapping[str, Any]) -> dict[str, Any]:
    return {path.replace("/", "."): value for path, value in trees.flatten(made_with).items()}


def _short(value: Any) -> str:
    return json_files.excerpt(value if isinstance(value, str) else json.dumps(value), 60)


def _digest_of(inputs: Sequence[Input]) -> str:
    digest = hashlib.sha256()
    for one in inputs:
        digest.update(json.dumps(None if one.is_blank else dict(one.fields)).encode() + b"\n")
        if one.others:
            digest.update(json.dumps(dict(one.others), default=str).encode() + b"\n")
    return digest.hexdigest()[:32]


def _digest_of_parameters(params: trees.Tree) -> str:
    digest = hashlib.sha256()
    for path, x in sorted(trees.flatten(params).items()):
        for part in map(np.ascontiguousarray, jax.tree.leaves(x)):  # several if it is quantised
            digest.update(f"{path} {part.dtype} {part.shape}\n".encode())
            digest.update(part.reshape(-1).view(np.uint8))
    return digest.hexdigest()[:32]
