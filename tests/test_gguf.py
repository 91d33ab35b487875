"""GGUF files, as their own library writes them and as we do: the same numbers, settings and tokenizer come out."""

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import families
import gguf as library
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tokenizers
from test_pretrained import random as made

import transformer_zoo as zoo
from transformer_zoo import registry, trees
from transformer_zoo.checkpoints import config_map, gguf, gguf_folder, safetensors, spm_model, weight_map
from transformer_zoo.data.token_bytes import BYTE_OF
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.published import gguf as gguf_layout

FAMILIES = [name for name in registry.families() if registry.family(name).PUBLISHED.gguf is not None]
PLAIN = ("llama", "qwen2", "qwen3")
"""Whose files the test writes, with the library."""
UNSAID = ("activation", "global_every", "unrotated_every", "normalised", "gate_scale", "gate_limit", "attention_bias")
"""Fields that most files do not tell: those of the published models."""
TEXTS = ["The window and the door of a house, 1234 times.", "Ça va? 你好 \n\n  def f(x):\n    return x", "<|end|>"]

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("transformer_zoo.folders.CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def write(file: Path, bundle: Any, kind: str = "F32", metadata: dict[str, Any] | None = None) -> None:
    """A file of a model's own numbers, by the names that llama.cpp gives them."""
    layout, config = registry.module_of(bundle.config).PUBLISHED.gguf, bundle.config
    folder = file.parent / "published"
    zoo.save_pretrained(folder, bundle)
    writer = library.GGUFWriter(file, layout.architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        add.get(type(value), writer.add_array)(key, value)
    back = {ours.replace("*", r"(\d+)"): theirs for theirs, ours in layout.names.items()}
    for name, tensor in safetensors.read_folder(folder).items():
        stem, end = name.rsplit(".", 1)
        theirs, layer = next((t, m) for ours, t in back.items() if (m := re.fullmatch(ours, stem)))
        x = np.array(tensor)
        if layout.rows and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_heads if stem.endswith("q_proj") else config.num_kv_heads
            x = x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        theirs = theirs.replace("*", "".join(layer.groups()))
        quantised = kind if x.ndim > 1 else "F32"
        stored = library.GGMLQuantizationType[quantised]
        writer.add_tensor(f"{theirs}.{end}", library.quants.quantize(x, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def params(m: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in trees.flatten(m.params).items()}


@pytest.mark.parametrize("family", PLAIN)
def test_a_file_is_a_model(tmp_path: Path, family: str):
    """Numbers to the bit, and every setting; it is unpacked once."""
    m = made(family, "causal-lm")
    write(tmp_path / "m.gguf", m, metadata={"tokenizer.ggml.eos_token_id": m.config.eos_id})
    loaded = zoo.from_pretrained(tmp_path / "m.gguf")
    # Of dropout and of windows that are not used, there is nothing in the file.
    others = {"attention_dropout": 0.0, "head_dropout": 0.0, "global_layers": 1}
    assert families.sized(loaded.config, **others) == families.sized(m.config, **others, window=None)
    ours, expected = params(loaded), params(m)
    assert ours.keys() == expected.keys() and loaded.tokenizer is None
    for path, x in expected.items():
        np.testing.assert_array_equal(ours[path], x, err_msg=path)
    folder = gguf_folder.unpacked(tmp_path / "m.gguf")
    before = (folder / "config.json").stat().st_mtime_ns
    assert gguf_folder.unpacked(tmp_path / "m.gguf") == folder
    assert (folder / "config.json").stat().st_mtime_ns == before and len([*folder.parent.iterdir()]) == 1
    assert zoo.from_pretrained(tmp_path / "m.gguf", task="base").model.task == "base"


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_numbers(tmp_path: Path, kind: str):
    """As the library reads them, each in its place."""
    config = families.small("llama", head_dim=8, mlp_dim=64)
    m = families.made("llama", config, task="causal-lm")
    write(tmp_path / "m.gguf", m, kind)
    loaded, expected = params(zoo.from_pretrained(tmp_path / "m.gguf")), params(m)
    bound = {"F16": 1e-3, "BF16": 8e-3, "Q8_0": 1e-2}.get(kind, 0.16)
    for path, x in expected.items():
        exact = path.endswith("scale")
        difference = np.abs(loaded[path] - x).max() / np.abs(x).max()
        assert difference == 0 if exact else 0 < difference < bound, (path, difference)


def test_blocks_of_every_type():
    """The blocks that only the library's reader knows are read, with the sizes of the format."""
    for name in gguf.QUANTISED:
        kind = library.GGMLQuantizationType[name]
        numbers, size = gguf._block(int(kind), Path("file"), "x")
        assert library.quants.dequantize(np.zeros((2, 3 * size), np.uint8), kind).shape == (2, 3 * numbers)


def test_rotary_positions(tmp_path: Path):
    config = families.small("llama", rope=Rope(theta=50.0))
    m = families.made("llama", config, task="causal-lm")
    scaling = {
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 6,
    }  # fmt: skip
    write(tmp_path / "m.gguf", m, metadata=scaling)
    expected = Rope(theta=50.0, kind="yarn", factor=4.0, original_length=6, fast_turns=32.0)
    assert zoo.from_pretrained(tmp_path / "m.gguf").config.rope == expected
    scaling["llama.rope.scaling.type"] = "none"
    write(tmp_path / "m.gguf", m, metadata=scaling)
    assert zoo.from_pretrained(tmp_path / "m.gguf").config.rope == Rope(theta=50.0)


def test_what_yarn_multiplies_by():
    """In a file, what is beside the usual factor; or the quotient of two factors."""
    layout, scaling = registry.family("llama").PUBLISHED.gguf, {"llama.rope.scaling.type": "yarn"}
    scaling["llama.rope.scaling.factor"] = 4.0
    usual = 1 + 0.1 * np.log(4)
    for more, expected in (
        ({}, None), ({"attn_factor": 1.0}, usual), ({"attn_factor": 2.0}, 2 * usual),
        ({"yarn_log_multiplier": 1.0}, 1.0), ({"yarn_log_multiplier": 0.5}, usual / (1 + 0.05 * np.log(4))),
    ):  # fmt: skip
        metadata = scaling | {f"llama.rope.scaling.{key}": value for key, value in more.items()}
        rope = layout.settings(metadata, {"token_embd.weight": (8, 8)})["rope_parameters"]
        found = rope.get("attention_factor")
        assert found == (expected if expected is None else pytest.approx(expected, rel=1e-6)), more


def trained(
    patterns: Sequence[str], digits: bool, ascii_only: bool = False, uncut: Sequence[str] = ()
) -> tokenizers.Tokenizer:
    """A tokenizer of pairs of bytes as the reference's `tokenizer.json` describes it.

    Args:
        ascii_only: each token is some whole characters.
        uncut: texts of which everything is a pair, also where they are cut.
    """
    if uncut:
        patterns, digits = (r"[\s\S]+",), False
    pre = tokenizers.pre_tokenizers
    letters = pre.ByteLevel.alphabet()
    if ascii_only:
        letters = sorted(BYTE_OF.keys(), key=BYTE_OF.get)[:128]
    cuts = [pre.Digits(individual_digits=True)] if digits else []
    cuts += [pre.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns]
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = pre.Sequence([*cuts, pre.ByteLevel(add_prefix_space=False, use_regex=not patterns)])
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600 if uncut else 320, special_tokens=["<|end|>", "<|start|>"], initial_alphabet=letters,
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([*(uncut or (TEXTS[:1] if ascii_only else TEXTS))] * 5, trainer)
    return made


@pytest.mark.parametrize("pre", [*gguf_folder.CUTS])
def test_tokenizer(tmp_path: Path, pre: str):
    patterns, digits, _ = gguf_folder.CUTS[pre]
    own = trained(patterns, digits)
    described = json.loads(own.to_str())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].get)
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2), "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in described["merges"]],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }  # fmt: skip
    m = families.made("llama", families.small("llama", vocab_size=len(tokens), eos_id=0), task="causal-lm")
    write(tmp_path / "m.gguf", m, metadata=metadata)
    loaded = zoo.from_pretrained(tmp_path / "m.gguf")
    for text in TEXTS:
        ids = loaded.tokenizer.encode(text).ids
        assert ids.tolist() == own.encode(text).ids and (text == "<|end|>" or loaded.tokenizer.decode(ids) == text)
    assert loaded.tokenizer.eos_id == 0 and loaded.token_ids.eos == (0,)
    assert zoo.load_tokenizer(tmp_path / "m.gguf").encode(TEXTS[0]).ids.tolist() == own.encode(TEXTS[0]).ids
    settings = json.loads((gguf_folder.unpacked(tmp_path / "m.gguf") / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == metadata["tokenizer.chat_template"] and settings["model_max_length"] == 24
    begun = metadata | {"tokenizer.ggml.add_bos_token": True}
    write(tmp_path / "begun.gguf", m, metadata=begun)
    assert zoo.load_tokenizer(tmp_path / "begun.gguf").encode(TEXTS[0], template=True).ids[0] == 1


def tokenizer_of(
    folder: Path, pre: str, ascii_only: bool = False, uncut: Sequence[str] = (), **settings: Any
) -> Tokenizer:
    """One that `trained` makes, as a folder of the Hugging Face layout has it."""
    patterns, digits, whole = gguf_folder.CUTS[pre]
    described = json.loads(trained(patterns, digits, ascii_only, uncut).to_str())
    described["pre_tokenizer"] = json.loads(trained(patterns, digits).to_str())["pre_tokenizer"]
    described["model"]["ignore_merges"] = whole
    described["normalizer"] = {"type": "NFC"} if pre in gguf_folder.COMPOSED else None
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(described))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | settings))
    return Tokenizer.load(folder)


def spaced(folder: Path) -> Tokenizer:
    """One like Gemma 4's: spaces are another character, and what is not in the vocabulary is bytes."""
    space, split = gguf_folder.SPACE, tokenizers.pre_tokenizers.Split
    made = gguf_folder.merging(gguf_folder.SPACED)
    made.pre_tokenizer = split(tokenizers.Regex("\n+"), "isolated")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=200, show_progress=False)
    made.train_from_iterator([*TEXTS[:1], "two\n\n\n lines  ends"] * 5, trainer)
    described, usual = (json.loads(one.to_str()) for one in (made, gguf_folder.merging(gguf_folder.SPACED)))
    found = sorted(described["model"]["vocab"], key=described["model"]["vocab"].get)
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *found]
    described["model"] |= {"vocab": {token: i for i, token in enumerate(tokens)}, "unk_token": "<unk>"}
    described["pre_tokenizer"] = usual["pre_tokenizer"]
    described["added_tokens"] = [
        {"id": i, "content": token, "special": True, "normalized": False, "single_word": False, "lstrip": False,
         "rstrip": False} for i, token in enumerate(tokens[:4])
    ]  # fmt: skip
    assert space in "".join(found)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(described))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"unk_token": "<unk>", "pad_token": "<pad>"}))
    return Tokenizer.load(folder)


def held(family: str, **sizes: Any) -> Any:
    """A small configuration that a file can hold."""
    module = registry.family(family)
    default, told = module.Config(), gguf_layout.PATTERN.keys() & module.PUBLISHED.gguf.defaults.keys()
    unsaid = [name for name in UNSAID if hasattr(default, name) and not (told and name == "global_every")]
    config = families.sized(families.small(family), **{name: getattr(default, name) for name in unsaid})
    config = families.sized(config, global_layers=0, **sizes)
    if not any(field.name == "global_every" for field in dataclasses.fields(config)):
        config = families.sized(config, window=None)
    return families.without_dropout(families.sized(config, score_dim=getattr(config, "head_dim", 0)))


OTHERS = (
    ("falcon", {"num_kv_heads": 1}),
    ("falcon", {"num_kv_heads": 2, "two_norms": True}),
    ("deepseek_v3", {"query_rank": None, "rope": Rope(interleaved=True), "value_dim": 6}),
    ("gemma4", {"num_layers": 4, "num_reusing_layers": 2, "double_mlp": True, "values_are_keys": True, "head_dim": 12}),
    ("gemma4", families.EXPERTS),
)


@pytest.mark.parametrize(("family", "changes"), [*((name, {}) for name in FAMILIES), *OTHERS])
def test_written_is_read(tmp_path: Path, family: str, changes: dict[str, Any]):
    """The same configuration and the same numbers, but for norms whose scales are stored larger by one, and for rates
    that are stored themselves and not their logarithms."""
    m = families.made(family, held(family, **changes), task="causal-lm")
    for dtype in ("bfloat16", "float32"):  # in the place of the same model
        m.save_gguf(tmp_path / "m.gguf", dtype=dtype)
    loaded = zoo.from_pretrained(tmp_path / "m.gguf")
    if family == "mistral":  # its files are LLaMA's
        shared = {field.name: getattr(loaded.config, field.name) for field in dataclasses.fields(loaded.config)}
        loaded = loaded.replace(config=families.sized(m.config, **shared))
    told, balance = families.without_dropout(loaded.config), getattr(m.config, "balance_weight", 0.0)
    rope = getattr(m.config, "rope", Rope())
    if told_rope := getattr(told, "rope", None):  # a number of 32 bits
        assert told_rope.attention_scale == pytest.approx(rope.attention_scale, rel=1e-7)
        untold = ("attention_factor", *(() if family == "deepseek_v3" else ("mscale", "mscale_all_dim")))
        same = {name: getattr(rope, name) for name in untold}
        told = families.sized(told, rope=dataclasses.replace(told_rope, **same))
    assert families.sized(told, init_std=m.config.init_std, global_layers=0, balance_weight=balance) == m.config
    ours, expected = params(loaded), params(m)
    assert ours.keys() == expected.keys()
    for path, x in expected.items():
        assert np.abs(ours[path] - x).max() <= (2e-7 if path.endswith(("/offset", "/log_rate")) else 0), path


def test_factors_of_rotary_positions(tmp_path: Path):
    """Phi-3's for short texts and for long ones, as tensors."""
    factors = [tuple(np.float32([1.5, 2.25]).tolist()), tuple(np.float32([3.1, 4.7]).tolist())]
    rope = Rope(kind="longrope", factor=4.0, original_length=6, short_factors=factors[0], long_factors=factors[1])
    m = families.made("phi3", held("phi3", rope=rope, max_length=24, head_dim=4), task="causal-lm")
    m.save_gguf(tmp_path / "m.gguf")
    read = zoo.from_pretrained(tmp_path / "m.gguf").config.rope
    told = dataclasses.replace(rope, attention_factor=read.attention_factor, short_factors=(1.5, 2.25),
                               long_factors=(3.1, 4.7))  # fmt: skip
    assert read == told and abs(read.attention_scale / rope.attention_scale - 1) < 1e-6
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "n.gguf").write_bytes(content.replace(b"rope_factors_long", b"rope_factors_lung"))
    with pytest.raises(ValueError, match="the tensor rope_factors_short.weight is there without the one"):
        zoo.from_pretrained(tmp_path / "n.gguf")


def test_slower_pairs_of_layers_without_a_window(tmp_path: Path):
    """The tensor of slower pairs is theirs, where layers with a window have positions of their own."""
    rope = Rope(theta=50.0, kind="llama3", factor=8.0, original_length=12)
    m = families.made("gemma3", held("gemma3", rope=rope), task="causal-lm")
    m.save_gguf(tmp_path / "m.gguf")
    read = zoo.from_pretrained(tmp_path / "m.gguf").config
    assert families.difference(read.rope.slowdown(6), rope.slowdown(6)) < 1e-7 and read.rope.slowdown(6).max() > 2
    assert read.local_theta == m.config.local_theta


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_quantised_experts(tmp_path: Path, family: str):
    """Each expert is read out of the blocks of all, and parts are joined behind them."""
    m = families.made(family, held(family, width=32, mlp_dim=64, head_dim=8), task="causal-lm")
    m.save_gguf(tmp_path / "m.gguf", dtype="q8_0")
    ours, expected = params(zoo.from_pretrained(tmp_path / "m.gguf")), params(m)
    for path, x in expected.items():
        exact = path.endswith(("scale", "bias", "sinks", "router/kernel"))
        assert np.abs(ours[path] - x).max() <= (0 if exact else 0.01 * np.abs(x).max()), path


def test_which_layers_have_a_window(tmp_path: Path):
    """As a number, or as a list for the layers; of one architecture, those with windows are another family's."""
    layout = registry.family("gemma3").PUBLISHED.gguf
    shapes, key = {"token_embd.weight": (8, 8)}, "gemma3.attention.sliding_window_pattern"
    assert layout.settings({key: 6}, shapes)["sliding_window_pattern"] == 6
    assert layout.settings({key: [True, False]}, shapes)["layer_types"] == ["sliding_attention", "full_attention"]
    with pytest.raises(ValueError, match="is no list of what has a window"):
        layout.settings({key: [1, 0]}, shapes)
    for name, more in (("olmo2", {}), ("olmo3", {"olmo2.attention.sliding_window": 4})):
        content = gguf.File(metadata={"general.architecture": "olmo2", **more}, tensors={})
        assert gguf_folder.family(content, tmp_path) is registry.family(name)


def test_written_as_16_bits(tmp_path: Path):
    m = families.made("stablelm", held("stablelm", query_key_norm=True), task="causal-lm")
    with pytest.warns(UserWarning, match="no tokenizer, and llama.cpp reads no GGUF file without one"):
        m.save_gguf(tmp_path / "m.gguf", dtype="bfloat16")
    kinds = {name: tensor.kind for name, tensor in gguf.read(tmp_path / "m.gguf").tensors.items()}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {0} != {kinds["blk.0.attn_q.weight"]}
    kept, rounded = zoo.from_pretrained(tmp_path / "m.gguf").params, jnp.asarray(m.params["token_embed"]["embedding"])
    np.testing.assert_array_equal(kept["token_embed"]["embedding"], rounded.astype(jnp.bfloat16).astype(np.float32))


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_the_library(family: str):
    """Of tensors and of keys, for every name that its tables have."""
    layout, config = registry.family(family).PUBLISHED.gguf, held(family)
    arch = next(arch for arch, name in library.MODEL_ARCH_NAMES.items() if name == layout.architecture)
    tables = library.get_tensor_name_map(arch, config.num_layers)
    shapes = registry.param_shapes(registry.family(family).Model(config, task="causal-lm"))
    tensors = weight_map.dump(registry.family(family), shapes, config=config, task="causal-lm")
    metadata = layout.metadata(config_map.write(registry.family(family), config, "causal-lm"))
    known = {key.replace("{arch}", layout.architecture) for group in (library.Keys.LLM, library.Keys.Attention,
             library.Keys.Rope, library.Keys.SSM) for key in vars(group).values() if isinstance(key, str)}  # fmt: skip
    assert metadata.keys() <= known
    checked = 0
    for name in tensors:
        theirs, _ = layout.their_names(name)
        assert theirs and all(layout.place(part).name.count("*") < 2 for part in theirs), name
        merged = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        if (found := tables.get_name(merged, (".weight", ".bias"))) is not None and len(theirs) == 1:
            assert theirs[0].removesuffix(".weight") == found.removesuffix(".weight"), name
            checked += 1
        assert {re.sub(r"\.(weight|bias)$", "", part) for part in theirs} <= {
            library.TENSOR_NAMES[kind].format(bid=bid) for kind in library.MODEL_TENSORS[arch]
            for bid in range(config.num_layers)
        }, name  # fmt: skip
    assert checked > len(tensors) / 2


def test_experts_and_parts_that_do_not_fit(tmp_path: Path):
    """Tensors of which a mixture's file has fewer, or others."""
    m = families.made("gpt_oss", held("gpt_oss"), task="causal-lm")
    m.save_gguf(tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    for words, old, new in (
        ("is there without its other part", b"blk.0.ffn_up_exps.weight", b"blk.0.ffn_no_exps.weight"),
        ("the key gpt-oss.attention.sliding_windov is not known", b"sliding_window", b"sliding_windov"),
    ):
        (tmp_path / "n.gguf").write_bytes(content.replace(old, new))
        with pytest.raises(ValueError, match=words):
            zoo.from_pretrained(tmp_path / "n.gguf")


def rewritten(file: Path, changes: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """The file with other numbers in its metadata, and with further tensors."""
    content = gguf.read(file)
    writer = library.GGUFWriter(file.with_name("n.gguf"), content.metadata["general.architecture"])
    for key, value in {**content.metadata, **changes}.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        if key != "general.architecture" and value is not None:
            add.get(type(value), writer.add_array)(key, value)
    for name, tensor in {**content.tensors, **tensors}.items():
        writer.add_tensor(name, np.array(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.with_name("n.gguf")


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_5"])
def test_layers_that_predict_further_tokens(tmp_path: Path, family: str):
    """They follow those of the model, and are left out."""
    m = families.made(family, held(family), task="causal-lm")
    m.save_gguf(tmp_path / "m.gguf")
    layers, arch = m.config.num_layers, registry.family(family).PUBLISHED.gguf.architecture
    changes = {f"{arch}.block_count": layers + 1, f"{arch}.nextn_predict_layers": 1}
    more = {
        f"blk.{layers}.{name}.weight": np.ones((2, 2), np.float32)
        for name in ("nextn.eh_proj", "nextn.enorm", "ffn_up")
    }
    with pytest.warns(UserWarning, match="a layer that predicts a further token, which is not read"):
        loaded = zoo.from_pretrained(rewritten(tmp_path / "m.gguf", changes, more))
    assert loaded.config.num_layers == layers and params(loaded).keys() == params(m).keys()


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("deepseek_v3", {"expert_gating_func": 1}, "expert_gating_func is 1: only experts that sigmoids choose"),
        ("deepseek_v3", {"attention.key_length_mla": None}, "key_length_mla is not there: old files"),
        ("deepseek_v3", {"attention.key_length": 5}, "is not that of a latent and a rotary key, 12"),
        ("deepseek_v3", {"rope.scaling.yarn_log_multiplier": None}, "only a multiplier above 0 is supported"),
        ("deepseek_v3", {"attention.temperature_scale": 0.1}, "queries of this family do not grow"),
        ("qwen3_5", {"ssm.state_size": None}, "there is no key ssm.state_size in its metadata"),
        ("qwen3_5", {"ssm.time_step_rank": 9}, "ssm.time_step_rank is 9, for ssm.group_count 8"),
        ("gemma4", {"expert_count": 4}, "top_k_experts is None; with enable_moe_block it must be a number"),
        ("gemma4", {"attention.sliding_window_pattern": 2}, "is no list of what has a window, layer by layer"),
        ("gemma4", {"attention.head_count_kv": [4, 8, 2]}, r"head_count_kv is \[2, 8\] in layers of one kind"),
        ("gemma4", {"feed_forward_length": [40, 40, 50]}, "50 in the last layers and 40 before: only twice"),
        ("gemma4", {"rope.dimension_count_swa": 4}, r"key_length_swa is \[4, 8\] in layers of one kind"),
        ("llama", {"attention.temperature_scale": 0.1}, "temperature_scale without YaRN is not supported"),
    ],
)  # fmt: skip
def test_what_its_architecture_alone_can_hold(tmp_path: Path, family: str, changes: dict[str, Any], words: str):
    families.made(family, held(family), task="causal-lm").save_gguf(tmp_path / "m.gguf")
    arch = registry.family(family).PUBLISHED.gguf.architecture
    changed = rewritten(tmp_path / "m.gguf", {f"{arch}.{key}": value for key, value in changes.items()}, {})
    with pytest.raises(ValueError, match=words):
        zoo.from_pretrained(changed)


def test_rates_that_are_none(tmp_path: Path):
    families.made("qwen3_5", held("qwen3_5"), task="causal-lm").save_gguf(tmp_path / "m.gguf")
    rates = np.array(gguf.read(tmp_path / "m.gguf").tensors["blk.0.ssm_a"])
    with pytest.raises(ValueError, match="n.gguf cannot be read: blk.0.ssm_a: a state would not decay"):
        zoo.from_pretrained(rewritten(tmp_path / "m.gguf", {}, {"blk.0.ssm_a": 0 * rates}))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_written_with_its_tokenizer(tmp_path: Path, pre: str):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    own = tokenizer_of(tmp_path / "own", pre, chat_template=template)
    # More embeddings than tokens, as published models have; a scaled rotation is kept as a tensor.
    rope = Rope(theta=50.0, kind="llama3", factor=8.0, original_length=12)
    config = families.small("llama", vocab_size=own.vocab_size + 3, activation="silu", eos_id=0, rope=rope)
    m = families.made("llama", families.without_dropout(config), task="causal-lm").replace(tokenizer=own)
    m.save_gguf(tmp_path / "m.gguf")
    metadata = gguf.read(tmp_path / "m.gguf").metadata
    assert (
        metadata["tokenizer.ggml.pre"] == pre and metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{own.vocab_size + 2}]"
    )
    loaded = zoo.from_pretrained(tmp_path / "m.gguf")
    for text in TEXTS:
        assert loaded.tokenizer.encode(text).ids.tolist() == own.encode(text).ids.tolist()
    assert loaded.tokenizer.chat([{"role": "user", "content": "Hi"}]) == "Hi"
    assert (loaded.tokenizer.bos_id, loaded.token_ids.eos) == (own.bos_id, (0,))
    slower = [m.config.rope.slowdown(m.config.head_dim) for m in (loaded, m)]
    assert slower[1].max() > 2 and families.difference(*slower) < 1e-7
    loaded.save_gguf(tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_what_cannot_be_written_is_named(tmp_path: Path):
    def refused(words: str, m: Any, **arguments: Any) -> None:
        with pytest.raises(ValueError, match=words):
            m.save_gguf(tmp_path / "m.gguf", **arguments)

    silu = families.small("llama", activation="silu")
    of = lambda family, config, task="causal-lm": families.made(family, families.without_dropout(config), task=task)
    refused("dtype 'int8' is not written: choose one of float32", of("llama", silu), dtype="int8")
    refused("of the task causal-lm, and this one is of base", of("llama", silu, "base"))
    refused("GGUF files of opt are not written: only those of ", of("opt", families.small("opt")))
    refused("activation='relu' has no place", of("llama", families.sized(silu, activation="relu")))
    refused("kind dynamic have no place", of("llama", families.sized(silu, rope=Rope(kind="dynamic", factor=2.0))))
    yarn = Rope(kind="yarn", factor=2.0, original_length=6)
    refused(r"YaRN between \(4.0, 1.0\) turns has no place", of("llama", families.sized(silu, rope=yarn)))
    windowed = families.small("qwen2", activation="silu", window=3, global_layers=1)
    refused("window=3 has no place in a GGUF file of qwen2: it would be read as None", of("qwen2", windowed))
    windowed = families.small("mistral", activation="silu", window=3)  # llama.cpp has no window in LLaMA's kin
    refused("window=3 has no place in a GGUF file of llama: it would be read as None", of("mistral", windowed))
    reusing = held("gemma4", num_layers=5, num_reusing_layers=2)
    refused("num_reusing_layers=2 has no place in a GGUF file of gemma4", of("gemma4", reusing))
    refused("kind default have no place", of("gemma4", families.sized(reusing, num_reusing_layers=1, rope=Rope())))
    scales = Rope(kind="yarn", factor=2.0, original_length=6, fast_turns=32.0, mscale=1.0, interleaved=True)
    latent = of("deepseek_v3", held("deepseek_v3", rope=scales))
    refused("of latent attention its readers take YaRN whose mscale", latent)
    small = of("llama", silu)
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    refused("without a tokenizer.json", small.replace(tokenizer=Tokenizer.load(tmp_path / "bytes")))
    words = Tokenizer.train(["a b"], 99, kind="wordpiece")
    refused("is none of those that a GGUF file has a name for", small.replace(tokenizer=words))
    own = tokenizer_of(tmp_path / "own", "gpt-2")
    tiny = of("llama", families.sized(silu, vocab_size=own.vocab_size - 1)).replace(tokenizer=own)
    refused(f"has {own.vocab_size} tokens, and the model has embeddings of {own.vocab_size - 1}", tiny)
    assert not (tmp_path / "m.gguf").exists()
    with pytest.raises(ValueError, match="the name of a GGUF file ends in .gguf"):
        small.save_gguf(tmp_path / "m")
    small.save_gguf(tmp_path / "m.gguf")
    before, deeper = (tmp_path / "m.gguf").read_bytes(), of("llama", families.sized(silu, num_layers=2))
    remedy = "name another file, or pass overwrite=True to replace it"
    refused(f"m.gguf holds a model that is another one .*, with llama.block_count {silu.num_layers}: {remedy}", deeper)
    assert (tmp_path / "m.gguf").read_bytes() == before
    deeper.save_gguf(tmp_path / "m.gguf", overwrite=True)
    (tmp_path / "m.gguf").write_text("mine")
    refused("m.gguf holds something else .*: name another file", small)


def test_what_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="there is no file .*m.gguf"):
        zoo.from_pretrained(tmp_path / "m.gguf")
    m = made("llama", "causal-lm")
    write(tmp_path / "m.gguf", m, metadata={"tokenizer.ggml.model": "bert"})
    (tmp_path / "m").write_bytes((tmp_path / "m.gguf").read_bytes())
    with pytest.raises(ValueError, match="m is a file, and a model is a folder or a GGUF file, whose name ends in"):
        zoo.from_pretrained(tmp_path / "m")
    with pytest.warns(UserWarning, match="the tokenizer cannot be read.*tokenizer.ggml.model is 'bert': only gpt2"):
        assert zoo.from_pretrained(tmp_path / "m.gguf").tokenizer is None
    write(tmp_path / "m.gguf", m, metadata={"llama.attention.sliding_window": 3})
    with pytest.raises(ValueError, match="attention.sliding_window is 3, and this family has no window"):
        zoo.from_pretrained(tmp_path / "m.gguf")
    write(tmp_path / "m.gguf", m, metadata={"llama.attention.causal": False, "general.name": "m"})
    with pytest.raises(ValueError, match="m.gguf: the key llama.attention.causal is not known"):
        zoo.from_pretrained(tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    start = min(tensor.offset for tensor in gguf.read(tmp_path / "m.gguf").tensors.values())
    for words, changed in {
        "it is empty": b"",
        "it does not begin with GGUF": b"GGML" + content[4:],
        "its version is 1: only 2 and 3": content[:4] + b"\1\0\0\0" + content[8:],
        "has the architecture 'lxama', which is not read": content.replace(b"llama", b"lxama"),
        "and the file has": content[:-64],
        "are of no tensor, and not zero": content[: start - 1] + b"\1" + content[start:],
    }.items():
        (tmp_path / "n.gguf").write_bytes(changed)
        with pytest.raises(ValueError, match=f"n.gguf.*{words}"):
            zoo.from_pretrained(tmp_path / "n.gguf")
    with pytest.raises(FileNotFoundError):
        zoo.from_pretrained(tmp_path / "absent.gguf")
    file, m = tmp_path / "n.gguf", families.made("gemma4", held("gemma4"), task="causal-lm")
    m.save_gguf(file, overwrite=True)
    content, end = file.read_bytes(), max(tensor.offset + tensor.size for tensor in gguf.read(file).tensors.values())
    assert len(content) > end + 1  # zeros behind the last tensor: all may be there, or none
    file.write_bytes(content[:end])
    zoo.from_pretrained(file)
    file.write_bytes(content[: end + 1])
    with pytest.raises(ValueError, match=f"its tensors end at byte {end}, and the file has {end + 1}"):
        zoo.from_pretrained(file)
    with pytest.raises(FileNotFoundError, match=r"A GGUF file is loaded by its own name: .*[mn]\.gguf"):
        zoo.from_pretrained(tmp_path)


def pieces_of(folder: Path, **options: Any) -> Tokenizer:
    """A SentencePiece model of pairs with a piece for each byte, as LLaMA's, and what stands beside it."""
    folder.mkdir()
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:2] * 9), model_writer=model, minloglevel=2,
        **plain | {"model_type": "bpe", "vocab_size": 340, "user_defined_symbols": ["<tab>"]} | options,
        control_symbols=["<turn>"],
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    added = {"340": {"content": "<call>", "special": False}, "341": {"content": "<|end|>", "special": True}}
    described = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_of_sentencepiece(tmp_path: Path, prefix: bool):
    """They come back with their scores and types; the same file of pieces is read by the same library."""
    own = pieces_of(tmp_path / "own", add_dummy_prefix=prefix)
    m = families.made("llama", held("llama", vocab_size=344, eos_id=2), task="causal-lm").replace(tokenizer=own)
    m.save_gguf(tmp_path / "m.gguf")
    loaded = zoo.from_pretrained(tmp_path / "m.gguf").tokenizer
    before, after = (
        spm_model.Model.read((folder / "tokenizer.model").read_bytes())
        for folder in (tmp_path / "own", gguf_folder.unpacked(tmp_path / "m.gguf"))
    )
    assert after.pieces == [*before.pieces, "<call>", "<|end|>", "[PAD342]", "[PAD343]"]
    assert (after.types[:340], after.types[340:]) == (before.types, [4, 3, 5, 5])
    assert (after.scores[:340], after.prefix, after.roles["bos"]) == (before.scores, prefix, "<s>")
    # Behind a piece like <tab> a text begins anew in these files, and with the prefix; not so in the model's own.
    more = [] if prefix else ["x<tab>y"]
    for text in [*TEXTS, " a  b\t\U0001f600 ", "y<call> z<|end|>a<turn> b", "", *more]:
        assert loaded.encode(text, template=True).ids.tolist() == own.encode(text, template=True).ids.tolist(), text
        ids = own.encode(text).ids
        assert loaded.decode(ids, special=True) == own.decode(ids, special=True)
    assert (loaded.bos_id, loaded.eos_id, loaded.unk_id) == (own.bos_id, own.eos_id, own.unk_id) == (1, 2, 0)
    loaded_again = zoo.from_pretrained(tmp_path / "m.gguf")
    loaded_again.save_gguf(tmp_path / "again.gguf")
    assert gguf.read(tmp_path / "again.gguf").metadata == gguf.read(tmp_path / "m.gguf").metadata


def test_pairs_of_characters(tmp_path: Path):
    """A tokenizer like Gemma 4's comes back, bytes and all."""
    own = spaced(tmp_path / "own")
    config = held("llama", vocab_size=own.vocab_size, eos_id=1)
    families.made("llama", config, task="causal-lm").replace(tokenizer=own).save_gguf(tmp_path / "m.gguf")
    metadata = gguf.read(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.token_type"][:5] == [3, 3, 3, 2, 6] and "tokenizer.ggml.pre" not in metadata
    loaded = zoo.from_pretrained(tmp_path / "m.gguf").tokenizer
    for text in [*TEXTS, "a  <eos>b\t\U0001f600"]:
        ids = own.encode(text).ids
        assert loaded.encode(text).ids.tolist() == ids.tolist() and loaded.decode(ids) == own.decode(ids)
    assert loaded.decode(loaded.encode(TEXTS[1]).ids) == TEXTS[1]
    assert (loaded.bos_id, loaded.eos_id, loaded.unk_id, loaded.pad_id) == (2, 1, 3, 0)


def test_pieces_that_are_not_written(tmp_path: Path):
    m = families.made("llama", held("llama", vocab_size=344, eos_id=2), task="causal-lm")
    for options in (
        {"model_type": "unigram", "vocab_size": 296},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nfkc"},
    ):
        own = pieces_of(tmp_path / next(iter(options)), **options)
        with pytest.raises(ValueError, match="that changes texts before it cuts them"):
            m.replace(tokenizer=own).save_gguf(tmp_path / "n.gguf")
