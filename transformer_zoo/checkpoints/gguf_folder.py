"""A GGUF file as a folder of the Hugging Face layout, whose readers then read configuration, tokenizer and weights."""

import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from transformer_zoo import folders, json_files, registry, trees
from transformer_zoo.checkpoints import gguf, spm_model
from transformer_zoo.checkpoints.gguf_parts import Parts
from transformer_zoo.checkpoints.spm_model import CONTROL, UNUSED, USER_DEFINED
from transformer_zoo.published.gguf import ATTENTION, FACTORS, FREQUENCIES, ORIGINAL, STILL, Change, Gguf

WEIGHTS = "model.gguf"
ORIGINAL_KEY = "original_max_position_embeddings"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|"
_OTHERS = rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_LARGE, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(ending: str) -> str:
    """Words of which only the beginning is in capitals, or the whole."""
    return "".join(rf"[^\r\n\p{{L}}\p{{N}}]?{word}{ending}|" for word in (f"{_LARGE}*{_SMALL}+", f"{_LARGE}+{_SMALL}*"))


_PATHS = _OTHERS.replace(r"[\r\n]*", r"[\r\n/]*")
_WITH_MARKS = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_CHINESE_OR_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_PUNCTUATED = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
# `tokenizer.ggml.pre`, how a text is cut before pairs of bytes are merged -> regular expressions, one after another, or
# none for GPT-2's; whether each digit is a word; whether a whole word of the vocabulary is taken unmerged.
CUTS = {
    "gpt-2": ((), False, False),
    "smollm": ((), True, False),
    "command-r": ((), True, False),
    "qwen2": ((rf"{_LETTERS}\p{{N}}{_OTHERS}",), False, False),
    "qwen35": ((_WITH_MARKS,), False, False),
    "dbrx": ((rf"{_LETTERS}\p{{N}}{{1,3}}{_OTHERS}",), False, False),
    "llama-bpe": ((rf"{_LETTERS}\p{{N}}{{1,3}}{_OTHERS}",), False, True),
    "gpt-4o": ((rf"{_cased(f'{_ENDINGS}?')}\p{{N}}{{1,3}}{_PATHS}",), False, True),
    "deepseek-v3": ((r"\p{N}{1,3}", _CHINESE_OR_KANA, _PUNCTUATED), False, False),
    "bloom": ((" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+",), False, False),
    "tekken": ((rf"{_cased('')}\p{{N}}{_PATHS}",), False, True),
}
COMPOSED = ("qwen2", "qwen35", "command-r")
"""Those that compose characters first (NFC)."""
SPACED, SPACE = "gemma4", "\u2581"
"""`tokenizer.ggml.model` of those that merge pairs of characters and not of bytes, where this character is a space."""
BEGUN = ("llama-bpe", "tekken", SPACED)
"""Those whose texts begin with their first token where a file does not say."""
ALIASES = {
    **dict.fromkeys(("default", "phi-2", "olmo"), "gpt-2"), **dict.fromkeys(("starcoder", "refact"), "smollm"),
    "smaug-bpe": "dbrx", "stablelm2": "qwen2", "deepseek-r1-qwen": "qwen2",
}  # fmt: skip
"""Other names of these."""


def unpacked(file: str | os.PathLike[str]) -> Path:
    """The folder of a GGUF file: its settings and its tokenizer as JSON, and a link to the file. It is made once, in
    the cache, and anew when the file changes.

    Raises:
        ValueError: the file is damaged, of an architecture that is not read, or asks for what is not known.
    """
    file = Path(file).resolve()
    stat = file.stat()
    key = hashlib.sha256(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = folders.CACHE.expanduser() / "gguf" / f"{file.stem}-{key}"
    if (folder / WEIGHTS).exists():
        return folder
    content = gguf.read(file)
    module = family(content, file)
    try:
        settings = _settings(module, content)
    except KeyError as error:
        raise ValueError(f"{file}: there is no key {error.args[0]} in its metadata") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{file}: {json_files.excerpt(error, 500)}") from error
    written = {"config.json": settings}
    if "eos_token_id" in (ids := _ids(content.metadata)):
        written["generation_config.json"] = ids
    try:
        if "tokenizer.ggml.model" in content.metadata:
            written |= _tokenizer(content.metadata, settings)
    except Exception as error:  # whatever is wrong with it, the weights are good without
        fault = f"{type(error).__name__}: {json_files.excerpt(error, 500)}"
        warnings.warn(f"{file}: the tokenizer cannot be read, so that the model has none: {fault}", stacklevel=2)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        parent = folder.parent
    except OSError:  # no place for a cache
        parent = Path(tempfile.mkdtemp())
        folder = parent / folder.name
    temporary = Path(tempfile.mkdtemp(dir=parent))
    for name, value in written.items():
        content = json.dumps(value, indent=1) if isinstance(value, dict) else value
        (temporary / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (temporary / WEIGHTS).symlink_to(file)
    try:
        temporary.rename(folder)
    except OSError:  # another process was first
        return folder if (folder / WEIGHTS).exists() else temporary
    return folder


def family(content: gguf.File, file: Path) -> ModuleType:
    """The family of a file.

    Raises:
        ValueError: none reads its architecture.
    """
    known: dict[str, dict[str | None, ModuleType]] = {}  # of several families the first reads a file
    for module in map(registry.family, registry.families()):
        if (layout := module.PUBLISHED.gguf) is not None:
            known.setdefault(layout.architecture, {}).setdefault(layout.only_with, module)
    name = content.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in known:
        shown, hint = json_files.excerpt(repr(name)), trees.nearest(str(name)[:80], known)
        raise ValueError(f"{file} has the architecture {shown}, which is not read: only {', '.join(known)} are.{hint}")
    marks = [mark for mark in known[name] if mark is not None and content.metadata.get(f"{name}.{mark}")]
    return known[name][next(iter(marks), None)]


def read_folder(folder: Path) -> dict[str, Any]:
    """The tensors by the names of the family's usual files. They are dequantised as they are read.

    Raises:
        ValueError: the file is damaged, or of an architecture that is not read.
    """
    file = (folder / WEIGHTS).resolve()
    content = gguf.read(file)
    layout = family(content, file).PUBLISHED.gguf.fitting(content.tensors)
    tensors: dict[str, Any] = {}
    parts: dict[tuple[str, str, int], dict[int, gguf.Tensor]] = {}
    for theirs, tensor in content.tensors.items():
        place = layout.place(theirs)
        if theirs == FREQUENCIES or (layout.has_factors and theirs in FACTORS.values()):
            continue
        if place.layout is not None:
            parts.setdefault((place.name, place.layout, place.parts), {})[place.part] = tensor
        elif "*" in place.name:
            tensors |= {place.name.replace("*", str(i)): item for i, item in enumerate(tensor.items())}
        else:
            tensors[place.name] = _changed(layout, [tensor])
    for (name, row, count), found in parts.items():
        shown = f"{json_files.excerpt(next(iter(found.values())).name)} {list(next(iter(found.values())).shape)}"
        if len(found) < count:
            raise gguf.damaged(file, f"{shown} is there without its other part")
        given = [found[i] for i in range(count)]
        try:
            known = layout.sizes(layout.own(content.metadata))
            own = Parts.of_file(row, [part.shape for part in given], known)
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise gguf.damaged(file, f"{shown} is not {row.split(' -> ')[0]}: {json_files.excerpt(error)}") from error
        tensors[name] = _changed(layout, given, own)
    return tensors


def _changed(layout: Gguf, given: Sequence[gguf.Tensor], parts: Parts | None = None) -> Any:
    change = layout.change(given[0].name)
    return given[0] if parts is None and change is None else Changed(given=given, parts=parts, change=change)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changed:
    """A tensor whose numbers a file has in another order, in several tensors, or changed; `np.asarray` reads it."""

    given: Sequence[gguf.Tensor]
    parts: Parts | None
    """How it is divided among them. None: it is the only one."""
    change: Change | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.given[0].shape if self.parts is None else self.parts.layout.shape

    @property
    def dtype(self) -> np.dtype:
        return np.result_type(*(tensor.dtype for tensor in self.given))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        arrays = [np.asarray(tensor) for tensor in self.given]
        x = arrays[0] if self.parts is None else self.parts.read(arrays)
        try:
            return x if self.change is None else self.change.read(x)
        except ValueError as error:
            raise gguf.damaged(self.given[0].file, f"{json_files.excerpt(self.given[0].name)}: {error}") from error


def _settings(module: ModuleType, content: gguf.File) -> dict[str, Any]:
    """The keys of config.json."""
    spec = module.PUBLISHED
    shapes = {name: tensor.shape for name, tensor in content.tensors.items()}
    settings = {"model_type": spec.model_type, "architectures": [spec.class_names()["causal-lm"]]}
    metadata = _short({key: x for key, x in content.metadata.items() if not key.startswith("tokenizer.")})
    settings |= spec.gguf.settings(metadata, shapes)
    window, longest = settings.get("sliding_window"), settings.get("max_position_embeddings")
    if window is not None and "window" not in spec.config and window != longest:
        raise ValueError(
            f"attention.sliding_window is {json_files.excerpt(repr(window))}, and this family has no window"
        )
    if FREQUENCIES in content.tensors:
        rope = settings["rope_parameters"]
        rope.get("full_attention", rope).update(_slowed(settings, content.tensors[FREQUENCIES]))
    if spec.gguf.has_factors and (found := content.tensors.keys() & FACTORS.values()):
        if len(found) < len(FACTORS):
            raise ValueError(f"the tensor {next(iter(found))} is there without the one for texts of the other lengths")
        own, longest = spec.gguf.own(metadata), settings.get("max_position_embeddings")
        original = settings[ORIGINAL_KEY] = own.get(ORIGINAL)
        if not all(type(length) is int and length > 0 for length in (original, longest)):
            raise ValueError(
                f"{ORIGINAL} is {json_files.excerpt(repr(original))}: the factors of positions need a length"
            )
        settings["rope_parameters"] |= {
            "rope_type": "longrope", ORIGINAL_KEY: original, "factor": longest / original,
            "attention_factor": own.get(ATTENTION),
            **{key: _numbers(content.tensors[theirs]) for key, theirs in FACTORS.items()},
        }  # fmt: skip
    return settings | _ids(content.metadata)


def _slowed(settings: Mapping[str, Any], tensor: gguf.Tensor) -> dict[str, Any]:
    """The rotary positions whose pairs turn more slowly, by the numbers of a tensor."""
    slower = _numbers(tensor)
    turned = [x for x in slower if x < STILL]
    if len(turned) == len(slower):
        factors = {"short_factor": slower, "long_factor": slower, "factor": 1.0}
        return {"rope_type": "longrope", ORIGINAL_KEY: settings.get("max_position_embeddings"), **factors}
    if slower[: len(turned)] != turned or len({*turned}) != 1:
        shown = json_files.excerpt(repr(slower))
        raise ValueError(f"the tensor {FREQUENCIES} is {shown}: the pairs before those that are still must be equal")
    return {"rope_type": "proportional", "factor": turned[0], "partial_rotary_factor": len(turned) / len(slower)}


def _numbers(tensor: gguf.Tensor) -> list[float]:
    return _short(np.asarray(tensor, np.float32).tolist())


def _short(value: Any) -> Any:
    """Numbers that were stored in float32 as they were meant: 1e-05 for 9.999999747378752e-06."""
    if isinstance(value, dict | list):
        return type(value)(map(_short, value)) if isinstance(value, list) else {k: _short(x) for k, x in value.items()}
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that generation reads."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {theirs: metadata.get(f"tokenizer.ggml.{name}_token_id") for theirs, name in names.items()}
    return {theirs: number for theirs, number in found.items() if number is not None}


def _tokenizer(metadata: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The files of the tokenizer.

    Raises:
        ValueError: it is of a kind that is not read.
    """
    from tokenizers import AddedToken, processors

    of = lambda name, default=None: metadata.get(f"tokenizer.ggml.{name}", default)
    tokens, kinds = of("tokens"), of("token_type", [])
    named = {f"{name}_token": of(f"{theirs}_token_id") for name, theirs in
             (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))}  # fmt: skip
    special = {name: tokens[number] for name, number in named.items() if number is not None}
    described = {**special, "clean_up_tokenization_spaces": False}
    if "tokenizer.chat_template" in metadata:
        described["chat_template"] = metadata["tokenizer.chat_template"]
    if "max_position_embeddings" in settings:
        described["model_max_length"] = settings["max_position_embeddings"]
    if of("model") == "llama":
        ends = {"add_bos_token": of("add_bos_token", True), "add_eos_token": of("add_eos_token", False)}
        model = spm_model.Model(
            pieces=tokens, scores=of("scores"), types=kinds, prefix=of("add_space_prefix", True),
            roles={name.removesuffix("_token"): token for name, token in special.items()},
        )  # fmt: skip
        # They are found in a text before it is cut.
        added = {
            i: {"content": token, "special": kind == CONTROL, "normalized": False}
            for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind in (CONTROL, USER_DEFINED)
        }  # fmt: skip
        described |= {"tokenizer_class": "LlamaTokenizer", **ends, "added_tokens_decoder": added}
        return {"tokenizer.model": model.to_bytes(), "tokenizer_config.json": described}
    if of("model") not in ("gpt2", SPACED):
        raise ValueError(
            f"tokenizer.ggml.model is {json_files.excerpt(repr(of('model')))}: only gpt2, {SPACED} and llama are read"
        )
    pre = SPACED if of("model") == SPACED else of("pre", "default")
    pre = ALIASES.get(pre, pre) if isinstance(pre, str) else pre
    if pre not in [*CUTS, SPACED]:
        known = ", ".join([*CUTS, *ALIASES])
        raise ValueError(f"tokenizer.ggml.pre is {json_files.excerpt(repr(of('pre')))}: only {known} are read")
    tokenizer = merging(
        pre,
        {token: i for i, (token, kind) in enumerate(itertools.zip_longest(tokens, kinds)) if kind != UNUSED},
        [tuple(merge.split(" ", 1)) for merge in of("merges")],
        special.get("unk_token"),
    )
    for kind in (CONTROL, USER_DEFINED):
        added = [AddedToken(t, normalized=False, special=kind == CONTROL) for t, k in zip(tokens, kinds) if k == kind]
        (tokenizer.add_special_tokens if kind == CONTROL else tokenizer.add_tokens)(added)
    if of("add_bos_token", pre in BEGUN) and "bos_token" in special:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, named["bos_token"])]
        )
    described["tokenizer_class"] = "PreTrainedTokenizerFast"
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": described}


def merging(
    pre: str, vocab: Mapping[str, int] | None = None, merges: Sequence[Any] | None = None, unknown: str | None = None
) -> Any:
    """A tokenizer of the library `tokenizers` that cuts texts as those of this name do, and merges pairs."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if pre == SPACED:
        made = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
        made.normalizer = normalizers.Replace(" ", SPACE)
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
        return made
    patterns, digits, whole = CUTS[pre]
    made = Tokenizer(models.BPE(vocab, merges, ignore_merges=whole))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not patterns))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    if pre in COMPOSED:
        made.normalizer = normalizers.NFC()
    return made
