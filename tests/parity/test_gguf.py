"""GGUF files that llama.cpp reads: greedy decoding gives the same tokens there, with the same probabilities."""

from pathlib import Path

import families
import pytest
import xllamacpp
from test_gguf import FAMILIES, tokenizer_of

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


@pytest.mark.parametrize(("family", "rope"), [*((name, Rope()) for name in FAMILIES), ("llama", LLAMA3)])
def test_llama_cpp_writes_the_same(tmp_path: Path, family: str, rope: Rope):
    own = tokenizer_of(tmp_path / "own", "gpt-2")
    config = families.sized(
        families.small(family), vocab_size=own.vocab_size, max_length=64, width=32, head_dim=8, num_heads=4, eos_id=0,
        num_kv_heads=2, activation="silu", rope=rope, window=None, global_layers=0,
    )  # fmt: skip
    m = families.made(family, families.without_dropout(config), task="causal-lm").replace(tokenizer=own)
    prompt = own.encode("The window and").ids.tolist()
    m.save_gguf(tmp_path / "m.gguf")
    ours = m.generate([prompt], max_new_tokens=24, output_scores=True)
    theirs = greedy(tmp_path / "m.gguf", prompt, 24)
    assert len(theirs) >= 6
    rest = zip(ours.answers[0].tolist(), ours.log_probs[0])
    for token, log_prob in theirs:  # in the same order among ours
        assert any(token == i and abs(log_prob - x) < 1e-5 for i, x in rest), (token, log_prob)
