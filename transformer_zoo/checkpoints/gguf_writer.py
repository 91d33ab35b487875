"""GGUF files of decoders, as llama.cpp reads them: weights, configuration, tokenizer and chat template in one file."""

import dataclasses
import itertools
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from transformer_zoo import registry
from transformer_zoo.checkpoints import config_map, gguf_folder, spm_model
from transformer_zoo.checkpoints.gguf_folder import SPACED
from transformer_zoo.checkpoints.gguf_parts import Parts
from transformer_zoo.checkpoints.spm_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from transformer_zoo.published.gguf import ATTENTION, FACTORS, FREQUENCIES, KEYS, ORIGINAL, STILL, Gguf

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""What a matrix may be stored as, and its type in the format. All else is stored in float32."""
# In float32 whatever their shape: the last two are routers and convolutions.
WHOLE = (".bias", "norm.weight", "ffn_gate_inp.weight", "ssm_conv1d.weight")
BLOCK = 32  # numbers of a row that share a scale in Q8_0
# Fields of a Config that no file holds, because they concern training alone.
UNHELD = ("init_std", "labels", "problem", "balance_weight")


def layout_of(family: ModuleType) -> Gguf:
    """How a family's models lie in these files.

    Raises:
        ValueError: a family that they cannot hold.
    """
    if (layout := family.PUBLISHED.gguf) is None:
        known = [name for name in registry.families() if registry.family(name).PUBLISHED.gguf is not None]
        what = family.PUBLISHED.model_type
        raise ValueError(f"GGUF files of {what} are not written: only those of {', '.join(known)} are")
    return layout


def describe(
    family: ModuleType, config: Any, tensors: Mapping[str, Any], ids: Mapping[str, int | None], tokenizer: Any
) -> dict[str, Any]:
    """The metadata of a model.

    Args:
        tensors: by the names of the family's usual files.
        ids: special tokens by the names that these files have for them, such as `eos`.
        tokenizer: a `data.tokenizers.Tokenizer`, or None.

    Raises:
        ValueError: a family, a setting or a tokenizer that these files cannot hold.
    """
    layout = layout_of(family)
    settings = config_map.write(family, config, "causal-lm")
    metadata = {"general.architecture": layout.architecture, "general.type": "model"} | layout.metadata(settings)
    if _factors(layout, config):
        more = {ORIGINAL: config.rope.original_length, ATTENTION: config.rope.attention_scale}
        metadata |= {f"{layout.architecture}.{key}": value for key, value in more.items()}
    _check_held(family, config, layout, metadata, tensors)
    metadata |= {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None}
    return metadata if tokenizer is None else metadata | _tokenizer(tokenizer, config.vocab_size)


def write(
    file: str | os.PathLike[str], family: ModuleType, config: Any, metadata: Mapping[str, Any],
    tensors: Mapping[str, Any], kind: str,
) -> None:  # fmt: skip
    """Writes a file, whole or not at all.

    Args:
        metadata: from `describe`.
        tensors: by the names of the family's usual files.
        kind: a key of `KINDS`.

    Raises:
        ValueError: a tensor that has no name in these files.
        ImportError: the package `gguf` is not installed.
        OSError: the file could not be written; the one that was there before is unchanged.
    """
    import gguf

    file, layout = Path(file).expanduser(), family.PUBLISHED.gguf
    file.parent.mkdir(parents=True, exist_ok=True)
    number, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    os.close(number)
    try:
        writer = gguf.GGUFWriter(partial, layout.architecture, use_temp_file=True)  # not all in memory
        stored = gguf.LlamaFileType["ALL_F32" if kind == "float32" else f"MOSTLY_{KINDS[kind]}"]
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        for key, value in {**metadata, "general.file_type": int(stored)}.items():
            if key != "general.architecture":  # the writer has added it
                add.get(type(value), writer.add_array)(key, value)
        if kind == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if (slower := _slowdown(config)) is not None:
            writer.add_tensor(FREQUENCIES, np.minimum(slower, STILL).astype(np.float32))
        for theirs, factors in zip(FACTORS.values(), _factors(layout, config)):
            writer.add_tensor(theirs, np.array(factors, np.float32))
        for theirs, x in _relaid(layout, tensors, metadata):
            whole = x.ndim < 2 or theirs.endswith(WHOLE) or (kind == "q8_0" and x.shape[-1] % BLOCK)
            as_kind = gguf.GGMLQuantizationType["F32" if whole else KINDS[kind]]
            writer.add_tensor(theirs, gguf.quants.quantize(np.ascontiguousarray(x), as_kind), raw_dtype=as_kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(partial, file)
    finally:
        Path(partial).unlink(missing_ok=True)


def _relaid(layout: Gguf, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors as these files have them, by their names. In memory are those of one name at a time."""
    known = layout.sizes(layout.own(metadata))
    # All experts of a layer are one tensor.
    for (theirs, row), names in itertools.groupby(tensors, key=lambda name: _places(layout, name)):
        arrays = [np.asarray(tensors[name], dtype=np.float32) for name in names]
        x = arrays[0] if len(arrays) == 1 and not _of_experts(layout, theirs[0]) else np.stack(arrays)
        parts = [x] if row is None else Parts.of_usual(row, x.shape, len(theirs), known).write(x)
        for name, part in zip(theirs, parts, strict=True):
            change = layout.change(name)
            yield name, part if change is None else change.write(part)


def _places(layout: Gguf, name: str) -> tuple[tuple[str, ...], str | None]:
    theirs, row = layout.their_names(name)
    if not theirs:
        raise ValueError(f"{name} has no name in the GGUF files of {layout.architecture}")
    return tuple(theirs), row


def _of_experts(layout: Gguf, theirs: str) -> bool:
    return "*" in layout.place(theirs).name


def _slowdown(config: Any) -> np.ndarray | None:
    """What the speeds of rotary pairs are divided by, where the metadata have no word for it."""
    rope = getattr(config, "rope", None)
    return None if rope is None else rope.slowdown(config.head_dim)


def _factors(layout: Gguf, config: Any) -> tuple[Any, ...]:
    """Those of rotary positions of the kind longrope, which the tensors FACTORS have."""
    held = layout.has_factors and config.rope.kind == "longrope" and _slowdown(config) is None
    return (config.rope.short_factors, config.rope.long_factors) if held else ()


def _check_held(
    family: ModuleType, config: Any, layout: Gguf, metadata: Mapping[str, Any], tensors: Mapping[str, Any]
) -> None:
    """Raises ValueError for a field that would be another one when the file is read."""
    shapes = {theirs: tensors[name].shape for name in tensors for theirs in _places(layout, name)[0]}
    defaults = {{**KEYS, **layout.keys}.get(key) for key in layout.defaults}
    settings = {"model_type": family.PUBLISHED.model_type, "eos_token_id": config.eos_id}
    settings |= layout.settings(metadata, shapes)
    again = config_map.read(family, settings)
    for field in dataclasses.fields(config):
        value, held = (getattr(c, field.name) for c in (config, again))
        told = field.name != "rope" or layout.scales_scores
        if not told and math.isclose(value.attention_scale, held.attention_scale, rel_tol=1e-6):
            # The scale is stored, in 32 bits, and not what it comes from.
            same = {name: getattr(value, name) for name in ("attention_factor", "mscale", "mscale_all_dim")}
            held = dataclasses.replace(held, **same)
        if value == held or field.name.endswith("dropout") or field.name in UNHELD:
            continue
        if field.name == "rope" and (_slowdown(config) is not None or _factors(layout, config)):  # tensors have it
            continue
        if field.name == "global_layers" and config.window is None:
            continue
        key = family.PUBLISHED.config.get(field.name)
        if value is None and key is not None and key.name in defaults:
            continue
        raise ValueError(
            f"{field.name}={value!r} has no place in a GGUF file of {layout.architecture}: it would be read as {held!r}"
        )


def _tokenizer(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    """The metadata of a tokenizer.

    Raises:
        ValueError: it is of a kind that these files have no word for.
    """
    import tokenizers

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        file, pieces = (Path(folder) / name for name in ("tokenizer.json", "tokenizer.model"))
        if pieces.exists():
            return _pieces(tokenizer, vocab_size, pieces.read_bytes())
        if not file.exists():
            raise ValueError(
                "a tokenizer without a tokenizer.json has no place in a GGUF file: m.replace(tokenizer=None) can be "
                "written"
            )
        text = file.read_text(encoding="utf-8")
    described, library = json.loads(text), tokenizers.Tokenizer.from_str(text)
    model, steps = described["model"], _steps(described)
    named = [*gguf_folder.CUTS, SPACED]
    known = [pre for pre in named if _steps(json.loads(gguf_folder.merging(pre).to_str())) == steps]
    if model["type"] != "BPE" or not known:
        raise ValueError(
            f"the tokenizer is none of those that a GGUF file has a name for ({', '.join(named)}): "
            "m.replace(tokenizer=None) can be written"
        )
    _check_size(library.get_vocab_size(), vocab_size)
    tokens = [library.id_to_token(i) or f"[PAD{i}]" for i in range(vocab_size)]
    kinds = [UNUSED if library.id_to_token(i) is None else NORMAL for i in range(vocab_size)]
    for added in described["added_tokens"]:
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    framed, plain = (library.encode("a", add_special_tokens=special).ids for special in (True, False))
    if framed[-len(plain) :] != plain or len(framed) > len(plain) + 1:
        raise ValueError("a tokenizer that frames a text with more than its first token has no place in a GGUF file")
    metadata = {
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_bos_token": len(framed) > len(plain),
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
    }  # fmt: skip
    if known[-1] != SPACED:
        return metadata | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": known[-1]} | _template(tokenizer)
    for i, token in enumerate(tokens):
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            kinds[i] = BYTE
    metadata |= {"tokenizer.ggml.model": SPACED, "tokenizer.ggml.add_space_prefix": False}
    if (unknown := library.token_to_id(model["unk_token"] or "")) is not None:
        metadata["tokenizer.ggml.unknown_token_id"], kinds[unknown] = unknown, UNKNOWN
    return metadata | _template(tokenizer)


def _template(tokenizer: Any) -> dict[str, str]:
    template = tokenizer.chat_templates.get("default")
    return {} if template is None else {"tokenizer.chat_template": template}


def _check_size(size: int, vocab_size: int) -> None:
    if size > vocab_size:
        raise ValueError(f"the tokenizer has {size} tokens, and the model has embeddings of {vocab_size}")


def _pieces(tokenizer: Any, vocab_size: int, data: bytes) -> dict[str, Any]:
    """The metadata of a SentencePiece model."""
    model = spm_model.Model.read(data)
    if model.kind != spm_model.BPE or model.trimmed or model.normalised:
        raise ValueError(
            "a SentencePiece model that merges no pairs, or that changes texts before it cuts them, has no place in a "
            "GGUF file: m.replace(tokenizer=None) can be written"
        )
    _check_size(tokenizer.vocab_size, vocab_size)
    more = range(len(model.pieces), vocab_size)
    spelt = tokenizer.tokens(more)
    tokens = [*model.pieces, *(token or f"[PAD{i}]" for i, token in zip(more, spelt))]
    kinds = [*model.types, *(UNUSED if token is None else USER_DEFINED for token in spelt)]
    for i, added in tokenizer.whole_tokens.items():
        if kinds[i] != UNKNOWN:
            kinds[i] = CONTROL if added.special else USER_DEFINED
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [*model.scores, *(0.0 for _ in more)], "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": model.prefix,
    }  # fmt: skip
    if UNKNOWN in kinds:
        metadata["tokenizer.ggml.unknown_token_id"] = kinds.index(UNKNOWN)
    if tokenizer.has_template:
        ids = tokenizer.encode("a", template=True).ids
        metadata["tokenizer.ggml.add_bos_token"] = bool(ids[0] == tokenizer.bos_id)
        metadata["tokenizer.ggml.add_eos_token"] = bool(ids[-1] == tokenizer.eos_id)
    return metadata | _template(tokenizer)


def _steps(described: Mapping[str, Any]) -> list[Any]:
    """What a tokenizer does to a text before it merges pairs: equal for those that cut alike."""
    steps = []
    for name in ("normalizer", "pre_tokenizer"):
        step = described[name] or {"type": "Sequence"}
        parts = next((step[key] for key in ("pretokenizers", "normalizers") if key in step), [step])
        kept = [{key: _spelt(x) for key, x in part.items() if key != "trim_offsets"} for part in parts]
        steps.append([part for part in kept if part != {"type": "Sequence"}])
    return [*steps, *(bool(described["model"].get(name)) for name in ("ignore_merges", "byte_fallback"))]


def _spelt(value: Any) -> Any:
    """Regular expressions with their line ends spelt out."""
    if not isinstance(value, dict) or "Regex" not in value:
        return value
    return {"Regex": value["Regex"].replace("\r", r"\r").replace("\n", r"\n")}
