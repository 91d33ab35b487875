"""Random arguments of a call of `generate`, over a random generation_config.json, against the reference: rows of
different lengths, with an end in the prompt, and alone as in a batch."""

import json
import os
import random
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # noqa: E402
import transformers  # noqa: E402

import transformer_zoo as zoo  # noqa: E402
from parity import reference  # noqa: E402
from parity.test_generation_config import CASES, in_double, unlikely  # noqa: E402
from transformer_zoo.data.tokenizers import Tokenizer  # noqa: E402
from transformer_zoo.generation import generate as generation  # noqa: E402

CALLS = int(os.environ.get("GENERATION_CALLS", "1"))
"""Calls for each family; 40 take some minutes."""
V, END, PAD = 40, 11, 0
LENGTHS = (1, 1, 3, 5, 4)
FAMILIES = ("gpt2", "t5", "bart")
BY_FAMILY = {case.family: case for case in reversed(CASES)}


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder as the reference saves it, and its model, of which tokens are likely or not."""
    folder = tmp_path_factory.mktemp("saved")
    with jax.enable_x64(True):
        theirs = reference.build(BY_FAMILY[request.param], seed=2)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(2 if parameter.requires_grad and parameter.ndim > 1 else 1)
    theirs.save_pretrained(folder)
    return folder, theirs


def drawn(draw: random.Random, is_encoder_decoder: bool, alike: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a file, and the arguments of a call.

    Args:
        alike: only arguments that mean the same for a row alone and, in the reference, for a padded one.
    """
    ids = lambda count: draw.sample(range(15, V), count)
    words = lambda: [ids(draw.choice((1, 1, 2, 3))) for _ in range(draw.choice((1, 4)))]
    rules = {
        "repetition_penalty": lambda: draw.choice((0.7, 1.0, 1.4)),
        "suppress_tokens": lambda: ids(6),
        "begin_suppress_tokens": lambda: [*ids(8), END],
        "bad_words_ids": lambda: [*words(), [END]],
        "sequence_bias": lambda: [[found, draw.uniform(-6, 6)] for found in words()],
        "forced_eos_token_id": lambda: END,
        "min_new_tokens": lambda: draw.choice((0, 1, 3)),
    }
    if not alike:
        rules |= {
            "forced_bos_token_id": lambda: draw.randrange(2, 10),
            "no_repeat_ngram_size": lambda: draw.choice((0, 1, 2)),
            "encoder_no_repeat_ngram_size": lambda: draw.choice((0, 1, 2)),
            "encoder_repetition_penalty": lambda: draw.choice((0.6, 1.0, 1.5)),
            "min_length": lambda: draw.randint(0, 9),
        }
    beams = {
        "length_penalty": lambda: draw.choice((-0.5, 0.0, 1.0, 2.0)),
        "early_stopping": lambda: draw.choice((True, False, "never")),
    }
    samples = {
        "temperature": lambda: draw.choice((0.5, 1.0, 1.7)),
        "top_k": lambda: draw.choice((0, None, 3, 50)),
        "top_p": lambda: draw.choice((1.0, 0.9, 0.4)),
        "min_p": lambda: draw.choice((0.0, 0.2)),
        "typical_p": lambda: draw.choice((1.0, 0.5)),
        "epsilon_cutoff": lambda: draw.choice((0.0, 0.05)),
        "eta_cutoff": lambda: draw.choice((0.0, 0.05)),
    }
    several = {"num_return_sequences": lambda: draw.choice((1, 2))}
    if is_encoder_decoder:
        rules["decoder_start_token_id"] = lambda: draw.choice((1, 7))
    own, asked = draw.choice(
        (
            (
                {},
                draw.choice(
                    ({}, {"num_beams": 1}, {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0})
                ),
            ),
            (beams | several, {"num_beams": draw.choice((2, 3))}),
            (samples | several, {"do_sample": True}),
        )
    )
    pick = lambda makers, rate: {name: make() for name, make in makers.items() if draw.random() < rate}
    lengths = ("min_new_tokens", "min_length")
    waiting = {name: make for name, make in (rules | beams | samples).items() if name not in lengths}
    file = {name: value for name, value in pick(waiting, 0.2).items() if value is not None}
    file |= {"eos_token_id": draw.choice((END, [END, 12])), "pad_token_id": PAD, "max_length": 20}
    call = pick(rules | own, 0.4) | asked
    call |= draw.choice(({}, {"eos_token_id": [END, 13]}, {"pad_token_id": 5, "use_cache": True}))
    # With a forced end as the only token there are no two answers, and none where it may not be the first.
    forced = "forced_eos_token_id" in file | call
    start = {"decoder_start_token_id": 1} if is_encoder_decoder else {}
    return start | file, call | {"max_new_tokens": draw.choice((5, 8) if forced else (1, 5, 8))}


def rows_of(seed: int, lengths: Any = LENGTHS) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    rows = [draw.integers(15, V, length).tolist() for length in lengths]
    rows[3][1], rows[4][-1] = END, rows[4][0]  # an end in the middle, and an n-gram to repeat
    return rows


@in_double()
def expected(theirs: Any, rows: list[list[int]], call: dict[str, Any], ends: list[int]) -> list[list[list[int]]]:
    """The reference's new tokens of a batch, up to and including the one that ends a text: [row][answer][token]."""
    longest, is_encoder_decoder = max(map(len, rows)), theirs.config.is_encoder_decoder
    ids, mask = torch.full((len(rows), longest), PAD), torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        part = slice(len(row)) if is_encoder_decoder else slice(longest - len(row), None)
        ids[i, part], mask[i, part] = torch.tensor(row), 1
    with reference.scaled(theirs), torch.no_grad(), mock.patch("torch.multinomial", unlikely):
        out = theirs.generate(input_ids=ids, attention_mask=mask, **call)
    new = out[:, 1 if is_encoder_decoder else longest :].tolist()
    cut = [row[: min((i + 1 for i, token in enumerate(row) if token in ends), default=len(row))] for row in new]
    several = len(new) // len(rows)
    return [cut[i * several : (i + 1) * several] for i in range(len(rows))]


@pytest.mark.parametrize("seed", range(CALLS))
@pytest.mark.parametrize("alike", [True, False], ids=["in-a-batch", "alone"])
def test_a_call_generates_what_the_references_does(saved: Any, alike: bool, seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generation, "BUCKET", 8)
    folder, theirs = saved
    draw = random.Random(f"{theirs.config.model_type} {alike} {seed}")
    file, call = drawn(draw, theirs.config.is_encoder_decoder, alike)
    rows = rows_of(seed)
    (folder / "generation_config.json").write_text(json.dumps(file))
    theirs.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    ends = call.get("eos_token_id", file["eos_token_id"])
    ends = ends if isinstance(ends, list) else [ends]
    answers = expected(theirs, rows, call, ends) if alike else [expected(theirs, [row], call, ends)[0] for row in rows]
    least = lambda key, logits: jnp.argmin(jnp.where(jnp.isfinite(logits), logits, jnp.inf))
    with jax.enable_x64(True), mock.patch("transformer_zoo.generation.sampling.draw", least):
        m = zoo.from_pretrained(folder, dtype="float64", param_dtype="float64")
        new = zoo.generate(m, rows, **call)
    new = new.reshape(len(rows), -1, new.shape[-1]).tolist()
    for found_NT, wanted_NT in zip(new, answers):
        assert len(found_NT) == len(wanted_NT)
        for found, wanted in zip(found_NT, wanted_NT):
            assert found[: len(wanted)] == wanted and set(found[len(wanted) :]) <= {*wanted[-1:]}, (
                file,
                call,
                new,
                answers,
            )


def test_lengths_that_count_the_prompt(saved: Any, monkeypatch: pytest.MonkeyPatch):
    """`max_length` and `min_length` of a call, over those of the file."""
    monkeypatch.setattr(generation, "BUCKET", 8)
    folder, theirs = saved
    file = {"eos_token_id": END, "max_length": 7, "min_length": 3, "decoder_start_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(file))
    theirs.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    rows = [row[:4] for row in rows_of(0, (4, 4, 4, 4, 4))]
    with jax.enable_x64(True):
        m = zoo.from_pretrained(folder, dtype="float64", param_dtype="float64")
    lengths = set()
    for call in (
        {},
        {"max_length": 12},
        {"max_length": 9, "min_length": 8},
        {"min_new_tokens": 2, "max_new_tokens": 3},
    ):
        answers = expected(theirs, rows, call, [END])
        with jax.enable_x64(True):
            new = zoo.generate(m, rows, **call).tolist()
        for found, (wanted,) in zip(new, answers):
            assert found[: len(wanted)] == wanted and set(found[len(wanted) :]) <= {END}
        lengths.add(len(new[0]))
    assert len(lengths) == 4 if theirs.config.is_encoder_decoder else 3


def test_stop_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From the file and from the call: the same tokens, greedy and sampled."""
    monkeypatch.setattr(generation, "BUCKET", 8)
    words = ["def", "read", "path", "return", "open", "class", "close", "self", "import", "value"]
    texts = [" ".join(random.Random(i).choices(words, k=8)) for i in range(40)]
    tokenizer = Tokenizer.train(texts, 300)
    case = BY_FAMILY["gpt2"].sized(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    with jax.enable_x64(True):
        theirs = reference.build(case, seed=2)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(2 if parameter.ndim > 1 else 1)
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    rows = [tokenizer.encode(text).ids.tolist()[:4] for text in texts[:5]]
    parts = [i for i in range(tokenizer.vocab_size) if not tokenizer.decode([i]).isascii()]  # parts of a character
    only = {"suppress_tokens": [*parts, tokenizer.eos_id]}
    free = expected(theirs, rows, {"max_new_tokens": 8, "do_sample": False} | only, [])
    found = [tokenizer.decode(new) for (new,) in free]
    stops = [text[len(text) // 2 :][:2] for text in found[:3]] + [tokenizer.decode([rows[3][-1]])[-1] + found[3][:1]]
    their_tokenizer, shortest = transformers.AutoTokenizer.from_pretrained(tmp_path), []
    for asked in ({}, {"do_sample": True, "top_k": 3}):
        call = {"max_new_tokens": 8, "stop_strings": stops} | asked | only
        file = {"eos_token_id": None, "stop_strings": stops} | asked | only
        (tmp_path / "generation_config.json").write_text(json.dumps(file))
        answers = [expected(theirs, [row], call | {"tokenizer": their_tokenizer}, [])[0][0] for row in rows]
        least = lambda key, logits: jnp.argmin(jnp.where(jnp.isfinite(logits), logits, jnp.inf))
        with jax.enable_x64(True), mock.patch("transformer_zoo.generation.sampling.draw", least):
            m = zoo.from_pretrained(tmp_path, dtype="float64", param_dtype="float64")
            for new in (zoo.generate(m, rows, max_new_tokens=8), zoo.generate(m, rows, **call)):
                for row, wanted in zip(new.tolist(), answers):
                    assert row[: len(wanted)] == wanted and set(row[len(wanted) :]) <= {wanted[-1]}
        shortest.append(min(map(len, answers)))
    assert max(shortest) < 8
