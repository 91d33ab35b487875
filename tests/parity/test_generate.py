"""Generation of every family against its reference, token for token: greedy and by beam search, in float64.

LONG=all compares long answers of every family, and not of a few.
"""

import dataclasses
import os
from typing import Any

import families
import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # noqa: E402

from parity import reference  # noqa: E402
from transformer_zoo import registry  # noqa: E402
from transformer_zoo.checkpoints import weight_map  # noqa: E402
from transformer_zoo.generation import generate as generation  # noqa: E402
from transformer_zoo.generation import published  # noqa: E402
from transformer_zoo.generation.beam import Beam  # noqa: E402
from transformer_zoo.generation.generate import generate  # noqa: E402
from transformer_zoo.generation.sampling import Greedy  # noqa: E402
from transformer_zoo.generation.strategy import Strategy  # noqa: E402
from transformer_zoo.nn import cache as caches  # noqa: E402
from transformer_zoo.pretrained import Bundle  # noqa: E402

ROWS, NEW, LONG = 20, 9, 128
SAMPLINGS = (
    Greedy(),
    Greedy(no_repeat_ngram_size=2, min_new_tokens=3),
    Greedy(repetition_penalty=1.5),
    Beam(num_beams=4),
    Beam(num_beams=4, repetition_penalty=1.3, no_repeat_ngram_size=4, num_return_sequences=2),
    Beam(num_beams=4, length_penalty=2.0, no_repeat_ngram_size=3),
    Beam(num_beams=4, length_penalty=-0.5, early_stopping=True, num_return_sequences=4),
    Beam(
        num_beams=3, length_penalty=1.5, early_stopping="never", no_repeat_ngram_size=2, min_new_tokens=2,
        suppressed=(15, 20), forced_first=12, renormalize=True, num_return_sequences=3,
    ),
)  # fmt: skip
WRITERS = [case for case in families.cases("cache") if case.caches]
# The other settings see logits alone, which are no matter of families.
OFTEN, EACH = ("gpt2", "bart"), (SAMPLINGS[0], SAMPLINGS[3])
PAIRS = [
    pytest.param(case, sampling, id=f"{families.name_of(case)}-{sampling}")
    for case in WRITERS
    for sampling in (SAMPLINGS if case.family in OFTEN else EACH)
]


LONG_WRITERS = [case for case in WRITERS if case.family in ("gemma4", "gpt2", "t5") or os.environ.get("LONG") == "all"]


def drawn(case: families.Case, seed: int, new: int) -> families.Case:
    """A configuration of random settings, with positions for so many new tokens."""
    config = families.random_config(case.family, seed, case.task)
    fields = {field.name for field in dataclasses.fields(config)}
    sizes = {
        "vocab_size": 40,
        "max_length": 16 + new,
        "width": 48,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "eos_id": 3,
    }
    sizes |= {"decoder_start_id": 1}  # where there is one for each language, it is none otherwise
    if getattr(config, "window", None) == 1:  # the reference's cache then keeps all tokens in place of none
        sizes |= {"window": 2}
    if "num_reusing_layers" in fields:  # the reference then generates only with vectors of each layer
        sizes |= {"num_layers": 4, "num_reusing_layers": 2, "global_every": 2, "input_dim": 8}
    if getattr(config, "full_every", 1) > 2:  # the reference's cache needs a layer with attention
        sizes |= {"full_every": 2}
    sizes = {name: size for name, size in sizes.items() if name in fields}
    return dataclasses.replace(case, config=dataclasses.replace(config, **sizes)).wide()


@pytest.fixture(autouse=True)
def short_rings(monkeypatch: pytest.MonkeyPatch):
    """One slot besides a window, so that a cache has rings though the texts here are short."""
    monkeypatch.setattr(caches, "SPARE", 1)


@pytest.fixture(scope="module")
def models(request: Any) -> tuple[Bundle, Any, list[list[int]]]:
    """Our model, theirs and their inputs. Random parameters are large, so that some tokens are likely and inputs
    matter; a token that is often generated is the one that ends a text. Configurations are drawn until inputs lead to
    different texts, and some of the texts that beam search finds end."""
    for seed in range(20):
        case, theirs, rows, texts = begun(request.param, seed, NEW)
        end = max(range(13, case.config.vocab_size), key=lambda token: sum(token in text for text in texts))
        m, rows = ended(case, theirs, rows, end)
        found = [text for (text,) in written(m.config, theirs, rows, Beam(num_beams=4))]
        if len(set(map(str, texts))) > ROWS // 2 and any(len(text) < NEW for text in found):
            break
    return m, theirs, rows


def begun(case: families.Case, seed: int, new: int) -> tuple[families.Case, Any, list[list[int]], list[list[int]]]:
    """A drawn case, the reference's model, prompts of unequal length and its greedy answers."""
    case, draw = drawn(case, seed, new), np.random.default_rng(2)
    rows = [draw.integers(4, case.config.vocab_size, 1 + i % 10).tolist() for i in range(ROWS)]
    with jax.enable_x64(True):
        theirs = reference.build(case, seed=1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(2 if parameter.requires_grad and parameter.ndim > 1 else 1)
    return case, theirs, rows, [text for (text,) in written(case.config, theirs, rows, Greedy(), new)]


def ended(case: families.Case, theirs: Any, rows: list[list[int]], end: int) -> tuple[Bundle, list[list[int]]]:
    """Our model, which like theirs ends a text with this token, and the prompts without it: it also pads them, and the
    reference would count it for its n-grams."""
    theirs.config.eos_token_id = theirs.generation_config.eos_token_id = end
    config = dataclasses.replace(case.config, eos_id=end)
    with jax.enable_x64(True):
        params = weight_map.load(
            case.module, registry.param_shapes(case.model), reference.tensors(theirs),
            config=case.config, task=case.task, param_dtype="float64",
        )  # fmt: skip
    rows = [[token if token != end else 0 for token in row] for row in rows]
    return Bundle(case.module.Model(config, task=case.task, compute=case.compute), params, config), rows


@pytest.mark.parametrize(("models", "sampling"), PAIRS, indirect=["models"])
def test_the_same_tokens(models: tuple[Bundle, Any, Any], sampling: Strategy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generation, "BUCKET", 12)
    m, theirs, rows = models
    if not registry.is_encoder_decoder(m.config):  # for the reference, the first token is that behind a single one
        sampling = dataclasses.replace(sampling, forced_first=None)
    with jax.enable_x64(True):
        new_BNT = generate(m, rows, max_new_tokens=NEW, sampling=sampling).reshape(ROWS, -1, NEW)
    short = []
    for new_NT, expected_NT in zip(new_BNT.tolist(), written(m.config, theirs, rows, sampling)):
        for new, expected in zip(new_NT, expected_NT):
            assert new[: len(expected)] == expected and set(new[len(expected) :]) <= {m.config.eos_id}
            short.append(len(expected) < NEW)
    # Of inputs that differ, and some of which end, or little would have been compared.
    assert len({str(new_NT) for new_NT in new_BNT}) > ROWS // 4
    assert any(short) or getattr(sampling, "length_penalty", 0) > 1


@pytest.mark.parametrize("case", LONG_WRITERS, ids=families.name_of)
def test_long_answers(case: families.Case):
    """Greedy ones of 20 prompts of unequal length in one batch: most are of 128 tokens, and a few end before."""
    for seed in range(20):
        one, theirs, rows, texts = begun(case, seed, LONG)
        counts = {token: sum(token in text for text in texts) for token in range(13, one.config.vocab_size)}
        end = min(filter(counts.get, counts), key=counts.get, default=13)
        m, rows = ended(one, theirs, rows, end)
        expected = [text for (text,) in written(m.config, theirs, rows, Greedy(), LONG)]
        if len(set(map(str, expected))) > ROWS // 2 and 0 < sum(len(text) < LONG for text in expected) < ROWS // 2:
            break
    with jax.enable_x64(True):
        new_NT = generate(m, rows, max_new_tokens=LONG, sampling=Greedy())
    for new, text in zip(new_NT.tolist(), expected):
        assert new[: len(text)] == text and set(new[len(text) :]) <= {m.config.eos_id}
    assert sum(len(text) == LONG for text in expected) >= ROWS // 2


def ends(tokens: list[int], eos_id: int) -> list[int]:
    """The position of the first end of a text."""
    return [tokens.index(eos_id) + 1] if eos_id in tokens else []


@reference.in_double()
def written(
    config: Any, theirs: Any, rows: list[list[int]], sampling: Strategy, most: int = NEW
) -> list[list[list[int]]]:
    """The reference's new tokens, up to and including the one that ends a text: [row][answer][token]."""
    is_encoder_decoder = registry.is_encoder_decoder(config)
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), config.eos_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        part = slice(len(row)) if is_encoder_decoder else slice(longest - len(row), None)
        ids[i, part], mask[i, part] = torch.tensor(row), 1
    with reference.scaled(theirs), torch.no_grad():
        out = theirs.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False,
            pad_token_id=config.eos_id, **published.write(sampling),
        )  # fmt: skip
    new = (
        out[:, 1 if is_encoder_decoder else longest :]
        .reshape(len(rows), -1, out.shape[1] - (1 if is_encoder_decoder else longest))
        .tolist()
    )
    return [[tokens[: min([*ends(tokens, config.eos_id), most])] for tokens in answers] for answers in new]
