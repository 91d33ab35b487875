"""GGUF files that llama.cpp reads: greedy decoding gives the same tokens there, with the same probabilities."""

from pathlib import Path

import families
import jax
import numpy as np
import pytest
import xllamacpp
from test_gguf import FAMILIES, held, tokenizer_of

from transformer_zoo.nn.rotary import Rope

LLAMA3 = Rope(kind="llama3", factor=8.0, original_length=16)


def greedy(file: Path, prompt: list[int], count: int) -> list[tuple[int, float]]:
    """The new tokens by llama.cpp, and their log probabilities. It leaves out those that do not
    end a character."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.cpuparams.n_threads, settings.n_parallel, settings.warmup = 64, 1, 1, False
    # Otherwise keys and values are rounded to 16 bits.
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    request = {"prompt": prompt, "max_tokens": count, "temperature": 0.0, "logprobs": 1, "ignore_eos": True}
    answer = xllamacpp.Server(settings).handle_completions(request)
    return [(token["id"], token["logprob"]) for token in answer["choices"][0]["logprobs"]["content"]]


@pytest.mark.parametrize(("family", "rope"), [*((name, None) for name in FAMILIES), ("llama", LLAMA3)])
def test_llama_cpp_writes_the_same(tmp_path: Path, family: str, rope: Rope | None):
    own = tokenizer_of(tmp_path / "own", "gpt-2", ascii_only=True)
    # Of gpt-oss it would round the pairs at which YaRN's ramp begins and ends, unlike the model's own code.
    rope = Rope() if family == "gpt_oss" else rope
    changes = {} if rope is None else {"rope": rope}
    config = held(
        family, vocab_size=own.vocab_size, max_length=64, width=32, head_dim=8, num_heads=4, eos_id=0, num_kv_heads=2,
        mlp_dim=32, window=4, **changes,
    )  # fmt: skip
    m = families.made(family, config, task="causal-lm").replace(tokenizer=own)
    prompt = own.encode("The window and").ids.tolist()
    m.save_gguf(tmp_path / "m.gguf")
    theirs = greedy(tmp_path / "m.gguf", prompt, 24)
    assert len(theirs) == 24
    ids, log_probs = [list(x) for x in zip(*theirs)]
    logits_BTV = jax.jit(m.model.apply)({"params": m.params}, np.asarray([prompt + ids])).logits
    logits_TV = logits_BTV[0, len(prompt) - 1 : -1, : config.vocab_size]
    np.testing.assert_array_equal(np.argmax(logits_TV.at[:, config.eos_id].set(-np.inf), axis=-1), ids)
    ours = np.asarray(jax.nn.log_softmax(logits_TV))[np.arange(24), ids]
    # It looks GELU up in a table of numbers of 16 bits.
    assert np.abs(ours - log_probs).max() < (2e-3 if "gelu" in getattr(config, "activation", "gelu") else 1e-5)
