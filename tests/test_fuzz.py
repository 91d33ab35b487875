"""Mutated files: none crashes, hangs, executes anything, fills the memory, is loaded wrongly in silence, or is refused
without its name. Few mutants of each file by default; FUZZ=300 tries as many (`make fuzz`)."""

import contextlib
import copy
import json
import os
import random
import signal
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import sentencepiece
import test_legacy as legacy
from flax import serialization
from test_gguf import held, pieces_of
from test_gguf import write as write_gguf
from test_pretrained import random as made

import transformer_zoo as zoo
from transformer_zoo import names, registry, trees
from transformer_zoo.checkpoints import formats, hub, safetensors, weight_map
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.generation import published

MUTANTS = int(os.environ.get("FUZZ", 20))
SECONDS = 20
# What a file could make Python do; imports and plain code are left out, since libraries import others late.
ACTIONS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect"}
seen: list[str] = []
sys.addaudithook(lambda event, arguments: seen.append(event) if event in ACTIONS else None)  # there for good


# ---- mutations; each returns how many bytes it has changed where they stand ------------------------------------------


def flip(draw: random.Random, content: bytearray) -> int:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return 1


def overwrite(draw: random.Random, content: bytearray) -> int:
    at = draw.randrange(len(content))
    content[at : at + 4] = draw.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"9999", b'"[{,', draw.randbytes(4)])
    return 4


def delete(draw: random.Random, content: bytearray) -> int:
    at = draw.randrange(len(content))
    del content[at : at + draw.choice([1, 2, 8, 100])]
    return 0


def insert(draw: random.Random, content: bytearray) -> int:
    at = draw.randrange(len(content))
    content[at:at] = draw.choice([draw.randbytes(draw.choice([1, 8, 100])), b"[" * 1000, b"9" * 5000, b"a" * 20_000])
    return 0


def repeat(draw: random.Random, content: bytearray) -> int:
    at, size = draw.randrange(len(content)), draw.choice([1, 8, 100, 1000])
    content[at:at] = content[at : at + size]
    return 0


def truncate(draw: random.Random, content: bytearray) -> int:
    del content[draw.randrange(len(content)) :]
    return 0


MUTATIONS = (flip, flip, overwrite, delete, insert, repeat, truncate)
VALUES = (None, True, -1, 0, 1, 3, 10**6, 10**9, 10**30, 1e300, float("nan"), "", "x", "x" * 10**5, "9" * 400, [], {})
VALUES += ([[]] * 1000, {"a": 1}, ["gelu"], {"0": "a", "5": "a"}, "../../x", "\ud800", json.loads("[" * 90 + "]" * 90))


def mutated(draw: random.Random, content: bytes, is_json: bool) -> tuple[bytes, int]:
    """Up to three changes of bytes, and how many bytes have changed where they stand; in JSON, mostly values in the
    place of others."""
    if is_json and draw.random() < 0.7:
        value = json.loads(content)
        for _ in range(draw.randint(1, 2)):
            replace(draw, value)
        return json.dumps(value).encode(), 0
    mutant, changed = bytearray(content), 0
    for _ in range(draw.randint(1, 3)):
        # Numbers deleted here and inserted there, as many, no reader can notice without a checksum.
        known = MUTATIONS if len(mutant) == len(content) else MUTATIONS[:3]
        changed += draw.choice(known)(draw, mutant) if mutant else 0
    return bytes(mutant), changed


def replace(draw: random.Random, value: Any) -> None:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = draw.choice(keys)
    if isinstance(value[key], dict | list) and draw.random() < 0.7:
        return replace(draw, value[key])
    if isinstance(value, dict) and draw.random() < 0.2:
        value[draw.choice([key.upper(), key[:-1], "x" * 1000, "\ud800"])] = value.pop(key)
    else:
        value[key] = copy.deepcopy(draw.choice(VALUES))


# ---- the files -------------------------------------------------------------------------------------------------------

BUNDLE = made("bert", "sequence-classification")
SHAPES = registry.param_shapes(BUNDLE.model)
EXPECTED = {path: np.asarray(x) for path, x in trees.flatten(BUNDLE.params).items()}


def load(folder: Path) -> dict[str, np.ndarray]:
    """The parameters, by the steps of `from_pretrained`; an architecture that is another one is not compared."""
    described = names.describe(folder, published=True)
    model, tensors = described.model(), formats.read_folder(folder)
    weight_map.check_sizes(described.family, model.config, tensors, str(described.source))
    shapes = SHAPES if model == BUNDLE.model else registry.param_shapes(model)
    params = weight_map.load(
        described.family, shapes, tensors,
        config=model.config, task=model.task, param_dtype="float32", source=str(folder),
    )  # fmt: skip
    return {path: np.asarray(x) for path, x in trees.flatten(params).items()}


def folder_of(folder: Path, kind: str) -> Path:
    """Writes the model, and returns the file to be mutated."""
    zoo.save_pretrained(folder, BUNDLE, max_shard_bytes=20_000 if kind == "index" else 10**9)
    if kind == "index":
        return folder / safetensors.INDEX
    if kind == "config.json":
        return folder / kind
    file = folder / safetensors.WEIGHTS
    if kind == "safetensors":
        return file
    tensors = {name: np.array(x) for name, x in safetensors.read_folder(folder).items()}
    file.unlink()
    file = folder / ("flax_model.msgpack" if kind == "msgpack" else "pytorch_model.bin")
    file.write_bytes(as_flax(tensors) if kind == "msgpack" else legacy.simple(kind, tensors))
    return file


def as_flax(tensors: dict[str, np.ndarray]) -> bytes:
    tree: dict[str, Any] = {}
    for name, x in tensors.items():
        *above, last = name.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        norm, table = "LayerNorm" in above[-1], above[-1].endswith("embeddings")
        last = {"weight": "scale" if norm else "embedding" if table else "kernel"}.get(last, last)
        node[last] = np.ascontiguousarray(x.T) if last == "kernel" else x
    return serialization.msgpack_serialize(tree)


@contextlib.contextmanager
def bounded(file: Path) -> Iterator[None]:
    """No action, no hang, and no more memory than ten times the folder (and what a small program takes)."""

    def hangs(*_: Any) -> None:
        raise AssertionError(f"not done after {SECONDS} seconds")

    size = sum(each.stat().st_size for each in file.parent.iterdir())
    seen.clear()
    old = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 10 * size + 2e7
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert not seen, f"it made Python do this: {seen}"


def attempt(file: Path, read: Callable[[], Any]) -> Any:
    """The result, or None where the file was refused, in an error that names it or its folder."""
    with bounded(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read()
        except (ValueError, FileNotFoundError) as error:
            message = str(error)
            assert str(file.parent) in message, f"{type(error).__name__} without a name: {message[:300]}"
            assert len(message) < 10_000, f"an error of {len(message)} characters"
            return None


def campaign(file: Path, seed: str, check: Callable[[int], bool], share: float = 0.2) -> None:
    """Tries the mutants of a file; `check` is told how many bytes have changed where they stand, and returns whether
    the mutant was refused, as more than this share must be."""
    draw, content, refused = random.Random(seed), file.read_bytes(), 0
    for number in range(MUTANTS):
        mutant, changed = mutated(draw, content, file.suffix == ".json")
        file.write_bytes(mutant)
        try:
            refused += check(changed)
        except Exception as error:
            raise AssertionError(f"mutant {number} of {file.name} ({seed}): {error!r:.500}") from error
    assert refused >= share * MUTANTS, "so few are refused that the mutations must be harmless"


@pytest.mark.parametrize("kind", ["safetensors", "index", *legacy.CONTAINERS, "msgpack"])
def test_weights(tmp_path: Path, kind: str):
    """What is loaded is what was saved, except for as many numbers as bytes of them were changed."""
    file = folder_of(tmp_path, kind)
    assert all(np.array_equal(x, EXPECTED[path]) for path, x in load(tmp_path).items())

    def check(changed: int) -> bool:
        found = attempt(file, lambda: load(tmp_path))
        if found is not None:
            assert found.keys() == EXPECTED.keys()
            wrong = sum(int((x.view(np.int32) != EXPECTED[path].view(np.int32)).sum()) for path, x in found.items())
            assert wrong <= changed, f"{wrong} numbers are wrong after a change of {changed} bytes"
        return found is None

    campaign(file, kind, check)


@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "gemma4"])
def test_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str):
    """Likewise; its metadata are the configuration too, of which a number may be another one. A mixture, whose tensors
    are parts of others, has a tokenizer of pieces."""
    monkeypatch.setattr("transformer_zoo.folders.CACHE", tmp_path / "cache")
    if family == "llama":
        m = made("llama", "causal-lm")
        write_gguf(tmp_path / "m.gguf", m)
    else:
        m = families.made(family, held(family, vocab_size=344, eos_id=2), task="causal-lm")
        m = m.replace(tokenizer=pieces_of(tmp_path / "own"))
        m.save_gguf(tmp_path / "m.gguf")
    expected = {path: np.asarray(x) for path, x in trees.flatten(m.params).items()}
    (folder := tmp_path / "files").mkdir()
    file = (tmp_path / "m.gguf").rename(folder / "m.gguf")
    read = lambda: zoo.from_pretrained(file)
    assert all(np.array_equal(np.asarray(x), expected[path]) for path, x in trees.flatten(read().params).items())

    def check(changed: int) -> bool:
        found = attempt(file, read)
        if found is not None and found.config.num_heads == m.config.num_heads:
            flat = {path: np.asarray(x) for path, x in trees.flatten(found.params).items()}
            wrong = sum(int((x.view(np.int32) != expected[path].view(np.int32)).sum()) for path, x in flat.items())
            assert wrong <= changed, f"{wrong} numbers are wrong after a change of {changed} bytes"
        return found is None

    campaign(file, f"gguf {family}", check)


def test_config(tmp_path: Path):
    """What is loaded has the saved numbers: no size in config.json can be another one than the tensors'."""
    file = folder_of(tmp_path, "config.json")

    def check(changed: int) -> bool:
        found = attempt(file, lambda: load(tmp_path))
        # Another number of heads divides the same numbers otherwise.
        assert found is None or all(np.array_equal(x.ravel(), EXPECTED[path].ravel()) for path, x in found.items())
        return found is None

    campaign(file, "config.json", check)


def test_modules(tmp_path: Path):
    file = tmp_path / hub.MODULES
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])]  # fmt: skip
    file.write_text(json.dumps(modules))

    def check(changed: int) -> bool:
        found = attempt(file, lambda: hub.modules(tmp_path))
        assert found is None or all(isinstance(part, str) for module in found for part in module)
        return found is None

    campaign(file, "modules.json", check)


GENERATION = {
    "eos_token_id": [3, 5], "bos_token_id": 1, "pad_token_id": 0, "do_sample": True, "temperature": 0.7, "top_k": 20,
    "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[7, 8], [9]],
    "suppress_tokens": [11], "max_new_tokens": 20, "sequence_bias": [[[4, 5], -1.5]], "num_return_sequences": 2,
}  # fmt: skip


def test_generation_config(tmp_path: Path):
    """It is read, or the model loads without its strategy."""
    m = made("gpt2", "causal-lm")
    file = tmp_path / published.FILE
    file.write_text(json.dumps(GENERATION))

    def check(changed: int) -> bool:
        found = attempt(file, lambda: published.load(tmp_path, {}, m.config))
        return found is None or isinstance(found.sampling, published.Refused)

    campaign(file, published.FILE, check)


LINE = "The window and the door of a house are open or shut, as its owner likes; [MASK] </s> 3.14"


@pytest.mark.parametrize(
    ("name", "share"),
    [("tokenizer.json", 0.2), ("vocab.txt", 0.0), ("tokenizer_config.json", 0.0), ("spiece.model", 0.2)],
)
def test_tokenizer(tmp_path: Path, name: str, share: float):
    """What is read of a damaged file has ids of its own vocabulary only; any line of vocab.txt is a token."""
    if name == "spiece.model":
        file = tmp_path / name
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([LINE] * 20), model_prefix=str(tmp_path / "spiece"), vocab_size=40, minloglevel=2,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
        )  # fmt: skip
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    else:
        tokenizer = Tokenizer.train([LINE] * 20, 120, kind="wordpiece")
        tokenizer.save(tmp_path)
        (tmp_path / "vocab.txt").write_text("\n".join(tokenizer.tokens(range(tokenizer.vocab_size))) + "\n")
        if name == "vocab.txt":
            (tmp_path / "tokenizer.json").unlink()
        file = tmp_path / name
    expected = Tokenizer.load(tmp_path).encode(LINE).ids
    assert len(expected) > 5

    def check(changed: int) -> bool:
        found = attempt(file, lambda: Tokenizer.load(tmp_path))
        if found is not None:
            with bounded(file), contextlib.suppress(ValueError):  # the library refuses some in use only
                ids = found.encode(LINE).ids
                assert not len(ids) or 0 <= ids.min() <= ids.max() < found.vocab_size
                assert found.fingerprint
        return found is None

    campaign(file, name, check, share)
