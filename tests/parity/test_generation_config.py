"""Generation by random generation_config.json files against the reference, token for token, before and after
`save_pretrained`; and each rule of the logits against the reference's processor."""

import contextlib
import dataclasses
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import families
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
from transformer_zoo import registry  # noqa: E402
from transformer_zoo.generation import generate as generation  # noqa: E402
from transformer_zoo.generation import published  # noqa: E402
from transformer_zoo.generation.rules import LogitsRules  # noqa: E402
from transformer_zoo.generation.sampling import Sample  # noqa: E402
from transformer_zoo.generation.token_ids import TokenIds  # noqa: E402

CONFIGS = int(os.environ.get("GENERATION_CONFIGS", "1"))
"""Files for each family; 40 take half an hour."""
ROWS, LENGTH, V = 5, 4, 40
ENDS = (11, 12, 13, 14)  # tokens that may end a text


def writers() -> list[families.Case]:
    """A small model of each family that generates, and of each further `model_type`."""
    found = []
    for case in families.cases("cache"):
        for model_type in case.module.PUBLISHED.model_types if case.caches else ():
            sizes = {"vocab_size": V, "max_length": 24, "num_layers": 1, "num_decoder_layers": 1}
            sizes |= {"eos_id": 3, "decoder_start_id": 1, "pad_id": 0, "model_type": model_type, "scale_logits": False}
            sizes |= {"bias_per_layer": model_type == "umt5"}
            if hasattr(case.config, "full_every"):  # the reference's cache needs a layer with attention
                sizes |= {"num_layers": 2, "full_every": 2}
            found.append(case.sized(**sizes).wide())
    return found


CASES = writers()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: getattr(case.config, "model_type", case.family))
def saved(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder as the reference saves it, and its model. Parameters are large, so that tokens are likely or not."""
    case, folder = request.param, tmp_path_factory.mktemp("saved")
    with jax.enable_x64(True):
        theirs = reference.build(case, seed=1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(2 if parameter.requires_grad and parameter.ndim > 1 else 1)
    theirs.save_pretrained(folder)
    return folder, theirs


def drawn(draw: random.Random, encoder_decoder: bool) -> dict[str, Any]:
    """The settings of a generation_config.json, about a third of all that are supported."""
    ids = lambda count: draw.sample(range(15, V), count)
    words = lambda: [ids(draw.choice((1, 1, 2, 2, 3))) for _ in range(draw.choice((1, 4, 12)))]
    ends = draw.choice((ENDS[0], [*ENDS[:2]], [*ENDS], None))
    settings = {
        "min_new_tokens": lambda: draw.randint(1, 5),
        "min_length": lambda: draw.randint(1, 9),
        "no_repeat_ngram_size": lambda: draw.choice((1, 2, 3)),
        "encoder_no_repeat_ngram_size": lambda: draw.choice((1, 2)),
        "repetition_penalty": lambda: draw.choice((0.7, 1.3, 2.0)),
        "encoder_repetition_penalty": lambda: draw.choice((0.6, 1.5)),
        "suppress_tokens": lambda: ids(6),
        "begin_suppress_tokens": lambda: [*ids(8), *ENDS[:2]],
        "bad_words_ids": lambda: [*words(), [ENDS[0]]],
        "sequence_bias": lambda: [[found, draw.uniform(-6, 6)] for found in words()],
        "forced_eos_token_id": lambda: draw.choice((ENDS[0], [*ENDS[1:3]])),
        "pad_token_id": lambda: draw.choice((0, 5)),
        "bos_token_id": lambda: draw.choice((1, 6)),
    }
    if encoder_decoder:
        settings["forced_bos_token_id"] = lambda: draw.randrange(2, 10)
    beams = {
        "length_penalty": lambda: draw.choice((-0.5, 0.0, 2.0)),
        "early_stopping": lambda: draw.choice((True, False, "never")),
        "num_return_sequences": lambda: 2,
        "renormalize_logits": lambda: True,
    }
    samples = {
        "temperature": lambda: draw.choice((0.5, 1.7)),
        "top_k": lambda: draw.choice((0, 3, 9)),
        "top_p": lambda: draw.uniform(0.3, 0.99),
        "min_p": lambda: draw.uniform(0.0, 0.3),
        "typical_p": lambda: draw.uniform(0.2, 0.95),
        "epsilon_cutoff": lambda: draw.uniform(0.001, 0.1),
        "eta_cutoff": lambda: draw.uniform(0.001, 0.3),
        "num_return_sequences": lambda: 2,
    }
    own, asked = draw.choice((({}, {}), (beams, {"num_beams": draw.choice((2, 3, 4))}), (samples, {"do_sample": True})))
    if own:  # of several, which are equal, the reference takes any
        settings["forced_eos_token_id"] = lambda: ENDS[0]
    chosen = {name: make() for name, make in (settings | own).items() if draw.random() < 0.35}
    new = draw.randint(4, 8)
    read = 1 if encoder_decoder else LENGTH
    length = draw.choice(({"max_new_tokens": new}, {"max_length": new + read}))
    start = {"decoder_start_token_id": draw.choice((1, 7))} if encoder_decoder else {}
    return chosen | asked | length | start | {"eos_token_id": ends}


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Also for the numbers of the settings."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with reference.in_double():
            yield
    finally:
        torch.set_default_dtype(default)


def unlikely(x: torch.Tensor, num_samples: int) -> torch.Tensor:
    """In place of a random token, the least probable one that can be drawn: what is excluded then matters."""
    return x.masked_fill(x == 0, torch.inf).argmin(dim=-1, keepdim=True)


@in_double()
def expected(theirs: Any, rows: np.ndarray, ends: Any) -> list[list[int]]:
    """The reference's new tokens of all answers, up to and including the one that ends a text."""
    ids = torch.tensor(rows)
    with reference.scaled(theirs), torch.no_grad(), mock.patch("torch.multinomial", unlikely):
        out = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    new = out[:, 1 if theirs.config.is_encoder_decoder else LENGTH :].tolist()
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    return [row[: min((i + 1 for i, token in enumerate(row) if token in ends), default=len(row))] for row in new]


def found(folder: Path, rows: np.ndarray) -> tuple[Any, np.ndarray]:
    """Our model from a folder, and its new tokens."""
    least = lambda key, logits: jnp.argmin(jnp.where(jnp.isfinite(logits), logits, jnp.inf))
    with jax.enable_x64(True), mock.patch("transformer_zoo.generation.sampling.draw", least):
        m = zoo.from_pretrained(folder, dtype="float64", param_dtype="float64")
        new = zoo.generate(m, rows)
        return m, new.reshape(-1, new.shape[-1])


@pytest.mark.parametrize("seed", range(CONFIGS))
def test_the_same_tokens_before_and_after_it_is_saved(
    saved: Any, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generation, "BUCKET", 8)
    folder, theirs = saved
    draw = random.Random(f"{theirs.config.model_type} {seed}")
    settings = drawn(draw, theirs.config.is_encoder_decoder)
    rows = np.random.default_rng(seed).integers(15, V, (ROWS, LENGTH))
    rows[:, -1] = rows[:, 0]  # so that there are n-grams to repeat
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = draw.choice((2, [4, 3]))  # does not count
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(settings))

    theirs.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    answers = expected(theirs, rows, settings["eos_token_id"])
    m, before = found(folder, rows)
    with jax.enable_x64(True):
        zoo.save_pretrained(tmp_path, m)
    again = type(theirs).from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager").eval()
    again.config._experts_implementation = "eager"  # products of groups know no float64
    reference.settle(again)
    assert expected(again, rows, settings["eos_token_id"]) == answers
    (tmp_path / "generation_config.json").write_text(json.dumps(generation_settings(m)))  # not as it was read
    theirs.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert expected(theirs, rows, settings["eos_token_id"]) == answers
    for new in (before, found(tmp_path, rows)[1]):
        assert len(new) == len(answers)
        for row, answer in zip(new.tolist(), answers):
            assert row[: len(answer)] == answer and set(row[len(answer) :]) <= {answer[-1]}, settings


def generation_settings(m: Any) -> dict[str, Any]:
    """The generation_config.json of the strategy and the token ids alone."""
    return published.write(m.sampling, m.token_ids)


# ---- one rule at a time


def processors(settings: dict[str, Any], prompt: torch.Tensor, source: torch.Tensor) -> Any:
    """The reference's processors of these settings."""
    config = transformers.GenerationConfig(**{"max_length": 30, "num_beams": 1} | settings)
    config._eos_token_tensor = torch.tensor([2, 5])
    model = mock.Mock(config=mock.Mock(is_encoder_decoder=True))
    of = lambda *arguments: transformers.GenerationMixin._merge_criteria_processor_list(model, *arguments)
    model._merge_criteria_processor_list = of
    return transformers.GenerationMixin._get_logits_processor(
        model, config, input_ids_seq_length=prompt.shape[1], encoder_input_ids=source, device="cpu"
    )


RULES = [
    {"sequence_bias": [[[3], 2.0], [[4, 7], -3.0], [[7, 4], 8.0], [[1, 2, 3], 1.5], [[9] * 20, 4.0]]},
    {"encoder_repetition_penalty": 1.7},
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"encoder_no_repeat_ngram_size": 2},
    {"bad_words_ids": [[3], [4, 7], [7, 4], [2]]},
    {"min_new_tokens": 4},
    {"min_length": 6},
    {"suppress_tokens": [1, 8]},
    {"begin_suppress_tokens": [1, 8]},
    {"forced_bos_token_id": 4},
    {"forced_eos_token_id": [4, 6]},
]
WARPERS = [
    {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"typical_p": 0.4}, {"typical_p": 0.9},
    {"epsilon_cutoff": 0.08}, {"eta_cutoff": 0.2}, {"temperature": 2.0, "top_k": 9, "typical_p": 0.8, "min_p": 0.05},
]  # fmt: skip


@pytest.mark.parametrize("settings", RULES, ids=str)
def test_a_rule_is_the_references(settings: dict[str, Any]):
    """On random logits, after each number of new tokens."""
    read, max_new, draw = 1, 6, np.random.default_rng(0)
    tokens = draw.integers(0, 10, (64, read + 6)).astype(np.int32)
    tokens[:, 1::2] = np.where(draw.random(tokens[:, 1::2].shape) < 0.5, 7, 4)
    source = draw.integers(0, 10, (64, 5)).astype(np.int32)
    settings = {"max_length": read + max_new} | settings
    theirs = processors(settings, torch.tensor(tokens[:, :read]), torch.tensor(source).long())
    changed = 0
    rules = LogitsRules(**{ours: settings[key] for ours, key in rule_names().items() if key in settings})
    ids = TokenIds(eos=(2, 5), forced_eos=tuple(settings.get("forced_eos_token_id", ())))
    for n in range(max_new):
        logits = draw.standard_normal((64, 10)) * 3
        with jax.enable_x64(True), in_double():
            ours = rules.apply(
                n, jnp.asarray(logits), jnp.asarray(tokens[:, read:]), token_ids=ids,
                prompt_BT=jnp.asarray(tokens[:, :read]), valid_BT=jnp.ones((64, read), bool),
                source_BS=jnp.asarray(source), valid_BS=jnp.ones((64, 5), bool),
                max_new=max_new, stop_ids=jnp.asarray([2, 5]),
            )  # fmt: skip
            wanted = theirs(torch.tensor(tokens[:, : read + n]).long(), torch.tensor(logits)).numpy()
        np.testing.assert_allclose(np.asarray(ours), wanted, rtol=1e-12)
        changed += int((wanted != logits).sum())
    assert changed > 0


def rule_names() -> dict[str, str]:
    """Our name of each rule, and the reference's."""
    return {field.name: field.metadata.get("published", field.name) for field in dataclasses.fields(LogitsRules)}


@pytest.mark.parametrize("settings", WARPERS, ids=str)
def test_what_is_sampled_from_is_the_references(settings: dict[str, Any]):
    draw, ones = np.random.default_rng(1), torch.ones((1, 1), dtype=torch.long)
    logits = draw.standard_normal((200, 30)) * draw.uniform(0.2, 4, (200, 1))
    logits[:20, ::3] = -np.inf
    with jax.enable_x64(True), in_double():
        theirs = processors({"do_sample": True} | {"top_k": 0} | settings, ones, ones)
        wanted = theirs(ones.expand(200, 1), torch.tensor(logits)).softmax(dim=-1).numpy()
        ours = jax.nn.softmax(Sample(**settings).filter(jnp.asarray(logits)), axis=-1)
    np.testing.assert_allclose(np.asarray(ours), wanted, atol=1e-12)
    assert ((wanted == 0).sum(axis=1) > (20 if "temperature" in settings else 0)).any() or len(settings) == 1


def test_the_families_are_at_least_eight():
    assert len(CASES) >= 8 and all(registry.generating_task(case.config) == case.task for case in CASES)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("saved", [case for case in CASES if case.family == "marian"], indirect=True, ids=["marian"])
def test_a_prefix_and_scores_are_the_references(saved: Any, beams: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generation, "BUCKET", 8)
    folder, theirs = saved
    rows = np.random.default_rng(5).integers(15, V, (ROWS, LENGTH))
    prefix = np.random.default_rng(6).integers(15, V, (ROWS, 2))
    rules = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 1}
    settings = {
        "eos_token_id": [11, 12],
        "decoder_start_token_id": 1,
        "forced_bos_token_id": 4,
        "max_length": 9,
    } | rules
    settings |= {"num_beams": beams, "num_return_sequences": max(1, beams - 1), "length_penalty": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    theirs.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    with in_double(), torch.no_grad():
        out = theirs.generate(
            input_ids=torch.tensor(rows), attention_mask=torch.ones((ROWS, LENGTH), dtype=torch.long),
            decoder_input_ids=torch.tensor(prefix), return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        log_probs = theirs.compute_transition_scores(
            out.sequences, out.scores, getattr(out, "beam_indices", None), normalize_logits=beams == 1
        ).numpy()
    with jax.enable_x64(True):
        m = zoo.from_pretrained(folder, dtype="float64", param_dtype="float64")
        found = zoo.generate(m, rows, prefix=prefix, output_scores=True)
    new = found.answers.reshape(-1, 6)
    for i, row in enumerate(out.sequences[:, 3:].tolist()):
        end = next((n + 1 for n, token in enumerate(row) if token in (11, 12)), len(row))
        assert new[i, :end].tolist() == row[:end]
        np.testing.assert_allclose(found.log_probs.reshape(-1, 6)[i, :end], log_probs[i, :end], atol=1e-9)
    if beams > 1:
        np.testing.assert_allclose(found.scores.reshape(-1), out.sequences_scores.numpy(), atol=1e-9)
