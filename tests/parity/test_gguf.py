"""GGUF files that llama.cpp reads: greedy decoding gives the same tokens there, with the same probabilities."""

import json
import shutil
import unicodedata
import urllib.request
from pathlib import Path
from typing import Any

import families
import jax
import numpy as np
import pytest
import xllamacpp
from test_gguf import FAMILIES, TEXTS, held, pieces_of, spaced, tokenizer_of

import transformer_zoo as zoo
from parity import assets
from transformer_zoo.checkpoints.gguf_folder import CUTS, SPACED
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.nn.rotary import Rope

LLAMA3 = Rope(kind="llama3", factor=8.0, original_length=16)
YARN = Rope(kind="yarn", factor=8.0, original_length=16, fast_turns=32.0, attention_factor=1.3)
# llama.cpp goes by the length that it has room for, a multiple of 256.
LONG = Rope(
    kind="longrope", factor=2.0, original_length=256, short_factors=(1.0, 1.5, 2.0, 4.0), long_factors=(9.0,) * 4
)


def server(file: Path, **changes: Any) -> xllamacpp.Server:
    """llama.cpp with a model."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.cpuparams.n_threads, settings.n_parallel, settings.warmup = 64, 1, 1, False
    # Otherwise keys and values are rounded to 16 bits.
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    for name, value in changes.items():
        setattr(settings, name, value)
    return xllamacpp.Server(settings)


def greedy(file: Path, prompt: list[int], count: int) -> list[tuple[int, float]]:
    """The new tokens by llama.cpp, and their log probabilities. It leaves out those that do not
    end a character."""
    request = {"prompt": prompt, "max_tokens": count, "temperature": 0.0, "logprobs": 1, "ignore_eos": True}
    answer = server(file).handle_completions(request)
    return [(token["id"], token["logprob"]) for token in answer["choices"][0]["logprobs"]["content"]]


# Of gpt-oss it would round the pairs at which YaRN's ramp begins and ends, unlike the model's own code.
CHANGES = {
    "gpt_oss": {"rope": Rope()},
    "falcon": {"two_norms": True},
    "qwen3_5": {"rope": Rope(share=0.5), "delta_key_dim": 16, "delta_value_dim": 16},
    "gemma4": {
        "num_layers": 6, "global_every": 2, "num_kv_heads": 1, "local_kv_heads": 2, "local_head_dim": 4,
        "num_reusing_layers": 2, "double_mlp": True, "values_are_keys": True,
        "rope": Rope(kind="proportional", share=0.5),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((name, CHANGES.get(name, {})) for name in FAMILIES),
        *(("llama", {"rope": LLAMA3}), ("phi3", {"rope": LONG}), ("qwen3", {"rope": YARN})),
        ("gemma4", CHANGES["gemma4"] | families.EXPERTS),
    ],
)
def test_llama_cpp_writes_the_same(tmp_path: Path, family: str, changes: dict[str, Any]):
    own = tokenizer_of(tmp_path / "own", "gpt-2", ascii_only=True)
    sizes = {"width": 32, "head_dim": 8, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 32, "window": 4, "eos_id": 0}
    config = held(family, vocab_size=own.vocab_size, max_length=512, **sizes | changes)
    m = families.made(family, config, task="causal-lm").replace(tokenizer=own)
    prompt = own.encode("The window and").ids.tolist()
    m.save_gguf(tmp_path / "m.gguf")
    theirs = greedy(tmp_path / "m.gguf", prompt, 24)
    assert len(theirs) == 24
    ids, log_probs = [list(x) for x in zip(*theirs)]
    logits_BTV = families.apply(m.model, m.params, np.asarray([prompt + ids])).logits
    logits_TV = logits_BTV[0, len(prompt) - 1 : -1, : config.vocab_size]
    np.testing.assert_array_equal(np.argmax(logits_TV.at[:, config.eos_id].set(-np.inf), axis=-1), ids)
    ours = np.asarray(jax.nn.log_softmax(logits_TV))[np.arange(24), ids]
    # It looks GELU up in a table of numbers of 16 bits.
    assert np.abs(ours - log_probs).max() < (2e-3 if "gelu" in getattr(config, "activation", "gelu") else 1e-5)


TRICKY = [
    *TEXTS[:2], "It's we'LL 12345,678  two\n\n\tThe/path/ to//x HTTPServer iPhone",
    "\u01c5a e\u0301 \u4f60\u597d1\u0664\u00b2 !!\r\n a",
    " begins", "ends  ", "one, two; (three)! \u3002four\u3001|", "a\u00a0b\u2003c \U0001f600\ufe0f", "\t x\n y",
]  # fmt: skip


@pytest.mark.parametrize("pre", [*CUTS, SPACED, "pieces", "pieces without a prefix", "published pieces"])
def test_llama_cpp_cuts_the_same(tmp_path: Path, pre: str):
    if pre in CUTS:
        own, changes = tokenizer_of(tmp_path / "own", pre, uncut=TRICKY), {}
    elif pre == SPACED:
        own, changes = spaced(tmp_path / "own"), {"eos_id": 1}
    elif pre == "published pieces":
        folder = assets.unpacked("mistral_common") / "mistral_common/data"
        own, changes = (
            Tokenizer.load(shutil.copy(folder / "tokenizer.model.v1", tmp_path / "tokenizer.model")),
            {"eos_id": 2},
        )
    else:
        own, changes = pieces_of(tmp_path / "own", add_dummy_prefix=pre == "pieces"), {"vocab_size": 344, "eos_id": 2}
    config = held("llama", **{"vocab_size": own.vocab_size, "eos_id": 0, "max_length": 64} | changes)
    m = families.made("llama", config, task="causal-lm").replace(tokenizer=own)
    m.save_gguf(tmp_path / "m.gguf")
    running, read = server(tmp_path / "m.gguf"), zoo.load_tokenizer(tmp_path / "m.gguf")
    for text in TRICKY:
        text = unicodedata.normalize("NFC", text)  # it composes no characters
        request = urllib.request.Request(
            f"{running.listening_address}/tokenize", json.dumps({"content": text}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as answer:
            theirs = json.load(answer)["tokens"]
        for ours in (own, read):
            assert ours.encode(text).ids.tolist() == theirs, (text, own.tokens(theirs))
