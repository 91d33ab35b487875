"""Answers that match a pattern: automata against `re`, the bytes of tokens, and answers of a model."""

import math
import random
import re

import families
import numpy as np
import pytest

from transformer_zoo import registry
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.generation import generate as module
from transformer_zoo.generation.generate import generate
from transformer_zoo.generation.pattern import automaton
from transformer_zoo.pretrained import Bundle

TEXTS = [
    "def read(path):\n    return open(path).read()\n",
    "Die Gr\u00f6\u00dfe ist 12 \u6587\u5b57 \U0001f600 <0x41>",
] * 3
ATOMS = (
    *(
        "a",
        "b",
        "c",
        "\u00e9",
        "\u5b57",
        "\U0001f600",
        ".",
        r"\d",
        r"\w",
        r"\s",
        r"\W",
        "[a-c]",
        "[^a]",
        "[\u00e9-\u5b57]",
    ),
    *(r"[\d_-]", r"[^\n]", "[^]a]", r"\.", "-", "{", "a{}", r"\x41", r"\u00e9"),
)
COUNTS = ("*", "+", "?", "{2}", "{1,2}", "{,2}", "{2,}", "*?")


def drawn(draw: random.Random, depth: int) -> str:
    kind = draw.random()
    if depth == 0 or kind < 0.35:
        return draw.choice(ATOMS)
    if kind < 0.6:
        return drawn(draw, depth - 1) + drawn(draw, depth - 1)
    if kind < 0.75:
        group = draw.choice(["(", "(?:", f"(?P<x{draw.randrange(10**6)}>"])
        return f"{group}{drawn(draw, depth - 1)}|{draw.choice(['', drawn(draw, depth - 1)])})"
    return f"(?:{drawn(draw, depth - 1)}){draw.choice(COUNTS)}"


def test_automata_match_what_re_matches():
    """300 drawn patterns, each on 40 texts; and choices."""
    draw, matched = random.Random(0), 0
    for _ in range(300):
        pattern = drawn(draw, 3)
        step_N256, ends_N = automaton(pattern)
        for _ in range(40):
            text = "".join(draw.choice("abcA\u00e9\u5b57\U0001f6001_ -.\n{]z") for _ in range(draw.randrange(6)))
            expected = re.fullmatch(pattern, text, re.ASCII) is not None
            assert reads(step_N256, ends_N, text) == expected, (pattern, text)
            matched += expected
    assert matched > 300
    step_N256, ends_N = automaton(("yes", "yesterday", "\u00e9"))
    assert [reads(step_N256, ends_N, text) for text in ("yes", "yesterday", "\u00e9", "yest", "")] == [True] * 3 + [
        False
    ] * 2


def reads(step_N256: np.ndarray, ends_N: np.ndarray, text: str) -> bool:
    state = 0
    for byte in text.encode():
        state = step_N256[state, byte]
        if state < 0:
            return False
    return bool(ends_N[state])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a", "is no regular expression"),
        ("^a", "'^' at 0 is not supported"),
        (r"\bword", r"'\\b' at 2 is not supported"),
        ("(?=a)b", "'(?=' at 0 is not supported"),
        (r"(a)\1", r"'\\1' at 5 is not supported"),
        ("a++", "'+' at 2 is not supported"),
        ("(a{999}){999}", "too much is allowed: an answer has more than 100,000 places"),
    ],
)
def test_patterns_that_cannot_be(pattern, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        automaton(pattern)


def test_bytes_of_a_byte_level_vocabulary():
    """Together they are the text of the tokens."""
    tokenizer = Tokenizer.train(TEXTS, 400)
    first, later = tokenizer.token_bytes
    assert first is later and {bytes([byte]) for byte in range(256)} <= {*first}
    assert b"".join(later[i] for i in tokenizer.encode(TEXTS[1]).ids).decode() == TEXTS[1]
    assert later[tokenizer.eos_id] == b""


CASES = families.writers()


def bundle(case, seed: int = 0) -> Bundle:
    is_encoder_decoder = registry.is_encoder_decoder(case.config)
    tokenizer = Tokenizer.train(TEXTS, 400, kind="t5" if is_encoder_decoder else "bpe")
    case = case.sized(
        max_length=96,
        num_layers=1,
        num_decoder_layers=1,
        decoder_start_id=1,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        forced_bos_id=None,
        forced_eos_id=None,
    )
    return Bundle(case.model, case.params(seed=seed), case.config, tokenizer)


def test_answers_match(monkeypatch):
    """Whatever the model would rather write: in time, by every strategy, and without tokens that are forbidden."""
    monkeypatch.setattr(module, "BUCKET", 16)
    case = next(case for case in CASES if not registry.is_encoder_decoder(case.config))
    m, prompts = bundle(case), ["def read", "12", "return open(path).read()"]
    pattern = r"[A-Z][a-z]{2,30}: (-?\d+(\.\d+)?|none)"
    ids = {text: i for i, text in enumerate(m.tokenizer.token_bytes[0])}
    # Alone, each of these rules forbids what the pattern needs next: an answer keeps another way to its end.
    colon, letters = ids[b":"], [ids[bytes([byte])] for byte in range(ord("A"), ord("Z") + 1)]
    for settings, never in (
        ({"suppress_tokens": letters[:-2], "draft": "prompt-lookup"}, letters[:-2]),
        ({"bad_words": [[i] for i in letters[1:]]}, letters[1:]),
        ({"sequence_bias": {(i,): -math.inf for i in letters[1:]}, "num_beams": 2}, letters[1:]),
    ):
        answers = generate(m, prompts, pattern=pattern, max_new_tokens=16, **settings)
        assert all(re.fullmatch(pattern, answer) for answer in answers), answers
        assert not {*never} & {i for answer in answers for i in m.tokenizer.encode(answer).ids.tolist()}
    with pytest.raises(ValueError, match="no tokens of this model match"):
        generate(m, prompts, pattern=pattern, max_new_tokens=16, suppress_tokens=[colon])


@pytest.mark.parametrize("case", CASES, ids=families.name_of)
def test_choices_behind_a_text_and_at_its_beginning(case):
    """An encoder-decoder's answer begins a text, and so does that to an empty prompt: state 1."""
    m, choices = bundle(case), ["yes", "no, never", "\u6587\u5b57", "yes"]
    asked = module.request(
        m, ["def", ""], max_new_tokens=16, sampling=None, seed=0, stop=None, settings={}, choices=choices
    )  # fmt: skip
    after_NV, distance_N, start_B = asked.constraint.after_NV, asked.constraint.distance_N, asked.constraint.start_B
    assert start_B.tolist() == ([1, 1] if registry.is_encoder_decoder(case.config) else [0, 1])
    found, queue = set(), [(state, b"") for state in start_B]
    tokens = m.tokenizer.token_bytes
    for state, text in queue:
        found |= {text.decode()} if distance_N[state] == 0 else set()
        for i in np.flatnonzero(after_NV[state] >= 0):
            queue.append((after_NV[state, i], text + tokens[int(state != 1)][i]))
    assert found == {*choices}


def test_constraints_that_cannot_be():
    m = bundle(CASES[0])
    for change, message in (
        ({"choices": ["a"], "pattern": "a"}, "choices and pattern: give one of them"),
        ({"choices": []}, "choices=[]: give texts"),
        ({"choices": ["a"], "num_beams": 2, "num_return_sequences": 2}, "is more than there are choices"),
        ({"choices": ["a", ""]}, "give texts, none of them empty"),
        ({"choices": ["a"], "min_new_tokens": 2}, "min_new_tokens=2 and choices may contradict one another: pass min_"),
        (
            {"pattern": "a", "min_length": 2},
            "min_length=2 and pattern may contradict one another: pass min_length=0",
        ),
        ({"schema": {"type": "null"}, "no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2 and schema may contradict"),
        ({"pattern": "a", "begin_suppress_tokens": [5]}, "pass begin_suppressed=(), or leave out pattern"),
        ({"pattern": "a", "stop_strings": ["}"]}, "stop_strings=('}',) and pattern may contradict one another"),
        ({"pattern": "a", "stop": ["}", 3]}, "stop=['}'] and pattern may contradict one another: pass stop=[], or"),
        ({"pattern": "a", "bad_words": [[5, 6]]}, "the tokens [5, 6] are forbidden one after another"),
        ({"pattern": "a", "suppressed": [m.config.eos_id]}, "tokens that end an answer, [0], are forbidden: allow one"),
        (
            {"pattern": "a{9}", "max_new_tokens": 2},
            "pattern: an answer cannot have at most max_new_tokens=2: the shortest has",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            generate(m, "a", **{"max_new_tokens": 4} | change)
    with pytest.raises(ValueError, match="Leave out choices"):
        generate(m.replace(tokenizer=None), [[1]], choices=["a"], max_new_tokens=4)
