"""Beam search: the compiled one against a plain loop over lists; languages; generation_config.json."""

import dataclasses
import itertools
import json

import families
import jax
import numpy as np
import pytest
from scipy.special import log_softmax
from toy import FORCED, FREE, READ, STOPS, V, compiled, read_of, toy, under_rules

import transformer_zoo as zoo
from transformer_zoo import registry
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.generation import beam as module
from transformer_zoo.generation import generate as generation
from transformer_zoo.generation import published
from transformer_zoo.generation.beam import Beam
from transformer_zoo.generation.generate import generate
from transformer_zoo.generation.sampling import Greedy, Sample
from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.pretrained import Bundle


def plain(
    log_probs, beam: Beam, read: list[int], max_new: int, stops=(), token_ids=FREE
) -> list[tuple[float, list[int]]]:
    """Beam search as one would explain it: the best answers of one row, [(value, tokens)].

    `log_probs` gives those of the next token after some new ones.
    """
    beams, answers = [(0.0, [])], []
    for n in range(max_new):
        found = []
        for score, new in beams:
            allowed = under_rules(log_probs(new), beam, read, new, max_new, stops, token_ids)
            found += [(score + x, [*new, token]) for token, x in enumerate(allowed) if x > -np.inf]
        beams = []
        for place, (score, new) in enumerate(sorted(found, reverse=True)):
            if new[-1] not in stops and n + 1 < max_new:
                beams.append((score, new))
            elif place < beam.num_beams:
                answers.append((score / len(new) ** beam.length_penalty, new))
        beams, answers = beams[: beam.num_beams], sorted(answers, reverse=True)[: beam.num_beams]
        if len(answers) == beam.num_beams and beams:
            far = beam.early_stopping == "never" and beam.length_penalty > 0
            hope = beams[0][0] / (max_new if far else n + 1) ** beam.length_penalty
            if beam.early_stopping is True or beam.num_beams == 1 or hope <= answers[-1][0]:
                break
    return answers


def both(beam, read, max_new, stops=STOPS, valid=None, **how):
    """(value, tokens) of all answers for each row, by the compiled search and by the plain one."""
    with jax.enable_x64(True):
        valid = np.ones(read.shape, bool) if valid is None else valid
        ours = compiled(beam, read, valid, np.int32(max_new), np.asarray(stops, np.int32), **how)
        new_BNR, value_BN = map(np.asarray, ours)
    scores, expected = toy(how["seed"], how.get("size", V)), []
    for row, real in zip(read.tolist(), valid):

        def log_probs(new, row=row):
            logits = scores(np, np.array([[*row, *new]]), len(row) + len(new))[0]
            return logits - np.log(np.exp(logits).sum())

        prompt = [token for token, there in zip(row, real) if there]
        found = plain(log_probs, beam, prompt, max_new, stops, how.get("token_ids", FREE))
        expected.append(found[: beam.num_return_sequences])
    return new_BNR[..., :max_new], value_BN, expected


def check(new_BNR, value_BN, expected, stops=STOPS):
    for new_NR, value_N, answers in zip(new_BNR, value_BN, expected):
        assert (value_N[len(answers) :] == module.ABSENT).all()  # missing answers have no score
        for new, value, (worth, tokens) in zip(new_NR.tolist(), value_N, answers):
            assert new[: len(tokens)] == tokens and value == pytest.approx(worth, abs=1e-9)
            assert set(new[len(tokens) :]) <= {tokens[-1]}  # the rest repeats the last token


@pytest.mark.parametrize(
    ("beam", "token_ids"),
    [
        (Beam(num_return_sequences=4), FREE),
        (Beam(num_beams=3, early_stopping=True, num_return_sequences=3), FREE),
        (Beam(num_beams=3, length_penalty=2.0, early_stopping="never", num_return_sequences=3), FREE),
        (Beam(num_beams=2, length_penalty=-0.5, num_return_sequences=2), FORCED),
        (Beam(num_beams=3, no_repeat_ngram_size=2, min_new_tokens=4, suppressed=(1, 7), forced_first=8), FORCED),
        (Beam(num_beams=5, length_penalty=-0.5, early_stopping="never", num_return_sequences=5), FREE),
        (Beam(num_beams=2, no_repeat_ngram_size=1, length_penalty=0.0, early_stopping="never"), FREE),
        (Beam(num_beams=1, no_repeat_ngram_size=3), FREE),
        (Beam(num_beams=3, repetition_penalty=1.7, num_return_sequences=3), FREE),
        (Beam(num_beams=3, suppressed=(0, 3), renormalize=True), FREE),
        (
            Beam(
                num_beams=3,
                sequence_bias={(7,): -1.0, (3, 4): 2.0},
                encoder_repetition_penalty=1.4,
                min_length=6,
                encoder_no_repeat_ngram_size=2,
                bad_words=((2,), (8,), (0, 1)),
                begin_suppressed=(4, 6),
            ),
            TokenIds(eos=(2, 5)),
        ),
    ],
    ids=str,
)
def test_search_is_the_plain_loop(beam, token_ids):
    """For several max_new and with two stop tokens, in one compiled program for each case."""
    ended = 0
    for round, max_new in enumerate((8, 5, 1)):
        read = read_of(16, round)
        valid = np.arange(READ) >= np.arange(16)[:, None] % READ  # padding counts for no n-gram
        answers = both(beam, read, max_new, valid=valid, seed=1, token_ids=token_ids)
        check(*answers)
        ended += sum(len(tokens) < max_new for row in answers[2] for _, tokens in row)
    assert ended > 0 or beam.length_penalty > 1 or token_ids == FORCED


def test_no_end():
    check(*both(Beam(num_beams=3, num_return_sequences=3), read_of(4, 0), 6, stops=(), seed=2))


def test_many_ends():
    """Most of the best candidates end; the search goes on with the others."""
    beam, stops = Beam(num_beams=3, length_penalty=2.0, num_return_sequences=3), (0, 1, 2, 3, 4, 5)
    check(*both(beam, read_of(16, 0), 8, stops=stops, seed=2))


def test_one_beam_is_greedy():
    read, scores = read_of(12, 5), toy(3)
    new_BNR, _, _ = both(Beam(num_beams=1), read, 8, seed=3)
    for row, new in zip(read.tolist(), new_BNR[:, 0].tolist()):
        for n, token in enumerate(new):
            if n and new[n - 1] in STOPS:
                assert token == new[n - 1]
            else:
                assert token == scores(np, np.array([[*row, *new[:n]]]), READ + n)[0].argmax()


@pytest.mark.parametrize("length_penalty", [1.0, -1.0])
def test_a_wide_beam_finds_the_best_of_all(length_penalty):
    size, max_new, stop = 4, 3, 1
    beam = Beam(num_beams=48, length_penalty=length_penalty, early_stopping="never", num_return_sequences=5)
    read = read_of(3, 7, size)
    new_BNR, value_BN, _ = both(beam, read, max_new, stops=(stop,), seed=4, size=size, room=max_new)
    scores = toy(4, size)
    for row, new_NR, value_N in zip(read.tolist(), new_BNR.tolist(), value_BN):
        values = {}
        for tokens in itertools.product(range(size), repeat=max_new):
            length = tokens.index(stop) + 1 if stop in tokens else max_new
            total = 0.0
            for n in range(length):
                logits = scores(np, np.array([[*row, *tokens[:n]]]), READ + n)[0]
                total += logits[tokens[n]] - np.log(np.exp(logits).sum())
            values[tokens[:length]] = total / length**length_penalty
        best = sorted(values.items(), key=lambda item: -item[1])[:5]
        for new, value, (tokens, worth) in zip(new_NR, value_N, best):
            assert tuple(new[: len(tokens)]) == tokens and value == pytest.approx(worth, abs=1e-9)


def test_answers_differ_and_the_best_come_first():
    beam = Beam(num_beams=6, num_return_sequences=6)
    new_BNR, value_BN, _ = both(beam, read_of(16, 9), 8, seed=5)
    assert (np.diff(value_BN, axis=1) <= 0).all() and (value_BN > module.ABSENT / 2).all()
    assert all(len({tuple(new) for new in new_NR}) == 6 for new_NR in new_BNR.tolist())


def test_rows_are_their_own():
    """A row's answers do not depend on the other rows, whether these end earlier or later."""
    beam, read = Beam(num_beams=3, num_return_sequences=3), read_of(8, 11)
    new_BNR, value_BN, _ = both(beam, read, 8, seed=6)
    others = read_of(8, 12)
    others[2], others[5] = read[7], read[0]
    new, value, _ = both(beam, others, 8, seed=6)
    assert (new[2] == new_BNR[7]).all() and (new[5] == new_BNR[0]).all()
    np.testing.assert_allclose(value[[2, 5]], value_BN[[7, 0]], atol=1e-12)


def test_everything_ends_in_the_first_step():
    """Only two tokens are not suppressed, and both end: there are two answers."""
    beam = Beam(num_beams=2, suppressed=tuple(i for i in range(V) if i not in STOPS), num_return_sequences=2)
    new_BNR, value_BN, expected = both(beam, read_of(4, 13), 8, seed=7)
    check(new_BNR, value_BN, expected)
    assert np.sort(new_BNR[:, :, 0]).tolist() == [list(STOPS)] * 4 and (new_BNR == new_BNR[..., :1]).all()


# ---- models


# A decoder and an encoder-decoder. That every family decodes with a cache as without is proved in test_models.py.
CASES = families.writers()


@pytest.fixture(autouse=True)
def small_bucket(monkeypatch):
    monkeypatch.setattr(generation, "BUCKET", 8)


def bundle(case, **changes) -> Bundle:
    sizes = {"max_length": 24, "num_layers": 1, "num_decoder_layers": 2, "decoder_start_id": 1} | changes
    case = case.wide().sized(**sizes)
    return Bundle(case.model, case.params(scale=0.5), case.config)


def log_probs_of(m: Bundle, row: list[int]):
    """The log probabilities of the token after some new ones, without a cache."""
    length = 24
    padded = lambda row: np.asarray([row + [0] * (length - len(row))])
    real = lambda row: np.arange(length)[None] < len(row)
    is_encoder_decoder = registry.is_encoder_decoder(m.config)

    def log_probs(new: list[int]) -> np.ndarray:
        read = [m.config.decoder_start_id, *new] if is_encoder_decoder else [*row, *new]
        given = {"tokens_BT": padded(read), "valid_BT": real(read)}
        if is_encoder_decoder:
            given = {"source_BS": padded(row), "valid_BS": real(row)}
            given |= {"target_BT": padded(read), "target_valid_BT": real(read)}
        return log_softmax(np.asarray(families.apply(m.model, m.params, **given).logits)[0, len(read) - 1])

    return log_probs


@pytest.mark.parametrize("case", CASES, ids=families.name_of)
def test_of_a_model_it_is_the_plain_loop(case):
    """With a cache whose prompt slots the beams of a row share, and rows of unequal lengths."""
    beam = Beam(num_beams=3, no_repeat_ngram_size=1, num_return_sequences=2)  # no token of the prompt either
    with jax.enable_x64(True):
        m = bundle(case)
        rows = [case.tokens(1, length, seed=length)[0].tolist() for length in (1, 5, 8)]
        new_BNT = generate(m, rows, max_new_tokens=6, sampling=beam)
        assert new_BNT.shape == (3, 2, 6) and new_BNT.dtype == np.int32
        is_encoder_decoder, eos = registry.is_encoder_decoder(m.config), m.config.eos_id
        for row, new_NT in zip(rows, new_BNT.tolist()):
            read = [m.config.decoder_start_id] if is_encoder_decoder else row
            answers = plain(
                log_probs_of(m, row), beam, read, 6, () if eos is None else (eos,), TokenIds.of_config(m.config)
            )
            for new, (_, tokens) in zip(new_NT, answers):
                assert new[: len(tokens)] == tokens and set(new[len(tokens) :]) <= {tokens[-1]}


def test_texts_of_several_answers(monkeypatch):
    """A list of texts for each prompt; one text where one answer is asked for."""
    tokenizer = Tokenizer.train(["def read(path):\n    return open(path).read()\n"] * 3, 280)
    m = Bundle(CASES[0].model, None, dataclasses.replace(config_of(False), vocab_size=tokenizer.vocab_size), tokenizer)
    m = dataclasses.replace(m, model=registry.family("gpt2").Model(m.config))
    new_BNT = np.stack([[tokenizer.encode(text).ids[:1] for text in texts] for texts in ("re", "ad")])
    for prompts, several in ((["def", "re"], True), (["def", "re"], False), ("re", True), ("re", False)):
        count = len(prompts) if isinstance(prompts, list) else 1
        new = new_BNT[:count, : 2 if several else 1]
        monkeypatch.setattr(generation, "_run", lambda *_, new=new: new)
        texts = [["r", "e"], ["a", "d"]] if several else ["r", "a"]
        assert generate(m, prompts, max_new_tokens=1) == (texts if isinstance(prompts, list) else texts[0])


# ---- languages


class Languages:
    """A tokenizer that marks languages in one of the known ways."""

    def __init__(self, frame):
        self.frame, self.vocab_size, self.asked = frame, 90, []

    def language_id(self, code):
        return {"aa": 11, "bb": 12}[code]

    def encode(self, text, *, template, target, language):
        assert template and target
        return dataclasses.make_dataclass("Encoding", ["ids"])(np.array(self.frame(self.language_id(language))))

    def encode_batch(self, texts, *, template, language):
        self.asked.append(language)
        return [dataclasses.make_dataclass("Encoding", ["ids"])(np.array([20 + len(text), 1])) for text in texts]

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.mark.parametrize(
    ("frame", "asked", "first", "start"),
    [
        (lambda language: [language, 1], "aa", 12, None),  # mBART-50: the first token of a target
        (lambda language: [1, language], "aa", None, 12),  # mBART: the start token of a target
        (lambda language: [1], "bb", None, None),  # Marian: the source is marked
    ],
)
def test_languages(frame, asked, first, start, monkeypatch):
    case = next(case for case in CASES if registry.is_encoder_decoder(case.config))
    tokenizer, given = Languages(frame), {}

    def run(asked):
        given.update(m=asked.m, sampling=asked.sampling)
        return np.zeros((len(asked.rows), 1, asked.max_new), np.int32)

    monkeypatch.setattr(generation, "_run", run)
    m = Bundle(case.model, None, case.config, tokenizer)
    source = {} if asked == "bb" else {"source_language": "aa"}
    generate(m, ["one"], max_new_tokens=3, sampling=Beam(), language="bb", **source)
    assert tokenizer.asked == [asked] and given["sampling"].forced_first == first
    assert given["m"].token_ids.decoder_start == (case.config.decoder_start_id if start is None else start)
    if asked == "bb":
        with pytest.raises(ValueError, match="source_language='aa'"):
            generate(m, ["one"], max_new_tokens=3, language="bb", source_language="aa")
        with pytest.raises(ValueError, match="the source names the language 'bb'"):
            generate(m, [[1]], max_new_tokens=3, language="bb")
    with pytest.raises(ValueError, match="no tokenizer"):
        generate(dataclasses.replace(m, tokenizer=None), [[1]], max_new_tokens=3, language="bb")


# ---- bad requests


def test_a_model_that_wants_a_language():
    mbart = families.small("mbart")
    m = Bundle(registry.family("mbart").Model(mbart), None, mbart)
    with pytest.raises(ValueError, match="the model's first token is that of a language: name one"):
        generate(m, [[1]], max_new_tokens=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams=0"),
        ({"num_beams": 2, "num_return_sequences": 3}, "search with more beams"),
        ({"num_return_sequences": 0}, "num_return_sequences=0"),
        ({"early_stopping": "always"}, "early_stopping='always'"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Beam(**settings)


@pytest.mark.parametrize(
    ("beam", "message"),
    [
        (Beam(num_beams=91), "num_beams=91 is more than the vocabulary has tokens, 90"),
        (Beam(suppressed=(3, 90)), r"suppressed\[0, 1\] is 90, outside of the vocabulary"),
        (Beam(forced_first=-1), r"forced_first\[0, 0\] is -1, outside of the vocabulary"),
    ],
    ids=str,
)
def test_what_a_model_has_not(beam, message, monkeypatch):
    monkeypatch.setattr(generation, "_run", None)  # nothing is computed
    case = CASES[0]
    with pytest.raises(ValueError, match=message):
        generate(Bundle(case.model, None, case.config), [[1]], max_new_tokens=2, sampling=beam)


# ---- what a published model asks for


@pytest.mark.parametrize(
    ("settings", "is_encoder_decoder", "expected"),
    [
        ({"bos_token_id": 0, "eos_token_id": 2, "max_length": 20}, True, Greedy(max_length=20)),
        (  # BART, for summaries: min_length counts the start token
            {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "min_length": 56, "max_length": 142,
             "no_repeat_ngram_size": 3, "forced_bos_token_id": 0, "forced_eos_token_id": 2},
            True,
            Beam(num_beams=4, length_penalty=2.0, early_stopping=True, min_length=56, no_repeat_ngram_size=3,
                 max_length=142),
        ),
        (  # Marian
            {"num_beams": 6, "bad_words_ids": [[89], [3]], "renormalize_logits": True, "forced_eos_token_id": 3},
            True,
            Beam(num_beams=6, bad_words=((89,), (3,)), renormalize=True),
        ),
        ({"repetition_penalty": 1.2, "max_new_tokens": 30}, False, Greedy(repetition_penalty=1.2, max_new_tokens=30)),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, False, Sample(temperature=0.6, top_p=0.9, top_k=50)),
        ({"do_sample": False, "top_k": 5, "num_beams": 1, "early_stopping": None}, False, Greedy()),
    ],
)  # fmt: skip
def test_generation_config(settings, is_encoder_decoder, expected, recwarn):
    config = dataclasses.replace(config_of(is_encoder_decoder), eos_id=3)
    sampling = published.read(settings, config)
    assert sampling == expected and not recwarn
    assert published.read(published.write(sampling), config) == sampling


def test_generation_config_is_written_as_it_was_read():
    """The keys of a file that select a strategy, and no others."""
    for settings in (
        {"min_new_tokens": 2, "repetition_penalty": 1.2, "max_length": 50, "num_beams": 3, "length_penalty": 0.5},
        {"num_beams": 4},
        {"max_new_tokens": 30, "temperature": 0.6, "do_sample": True, "top_k": 0},
        {"suppress_tokens": [7], "begin_suppress_tokens": [3]},
        {"max_length": 9, "stop_strings": ["a", "b"]},
        {},
    ):
        written = published.write(published.read(settings, config_of(True)))
        assert written == settings and list(written) == list(settings)


def config_of(is_encoder_decoder):
    return next(case.config for case in CASES if registry.is_encoder_decoder(case.config) == is_encoder_decoder)


def test_generation_config_that_is_not_supported():
    with pytest.warns(
        UserWarning, match=r"stopping_strings=x, penalty_alpha=0.6, do_sample=True, stop_strings=\['a'\], which is not"
    ):
        settings = {"penalty_alpha": 0.6, "stop_strings": ["a"], "num_beams": 2, "do_sample": True}
        settings |= {"stopping_strings": "x", "use_cache": True, "top_h": None, "num_beam_groups": 1}
        assert published.read(settings, config_of(True)) == Beam(num_beams=2)
    with pytest.warns(UserWarning, match="has num_return_sequences=2, which is not"):
        settings = {"forced_bos_token_id": 9, "num_return_sequences": 2, "min_length": 9}
        assert published.read(settings, config_of(False)) == Greedy(min_length=9)
    settings = {"suppress_tokens": [7, 10**6]}  # never generated
    assert published.read(settings, config_of(False)) == Greedy(suppressed=(7,))


def test_a_folder_says_how_it_writes(tmp_path, monkeypatch):
    """The strategy is read from generation_config.json, or from an old config.json, and written back."""
    m = families.made("gpt2", families.small("gpt2"))
    assert m.sampling == Greedy()
    beam = Beam(num_beams=3, length_penalty=0.5, suppressed=(7,))
    zoo.save_pretrained(tmp_path, dataclasses.replace(m, sampling=beam))
    again = zoo.from_pretrained(tmp_path)
    assert again.sampling == beam
    asked = []
    monkeypatch.setattr(generation, "_run", lambda request: asked.append(request.sampling))
    for sampling in (None, Greedy()):
        with pytest.raises(AttributeError):
            generate(again, [[1]], max_new_tokens=1, sampling=sampling)
    assert asked == [beam, Greedy()]
    (tmp_path / "generation_config.json").unlink()
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_beams": 2}))
    assert zoo.from_pretrained(tmp_path).sampling == Beam(num_beams=2)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match="generation_config.json is a list of 0, where an object is expected"):
        zoo.from_pretrained(tmp_path)


def test_beams_are_values():
    assert hash(Beam(suppressed=[3])) == hash(Beam(suppressed=(3,))) and Beam(suppressed=[3]) == Beam(suppressed=(3,))


def test_the_largest_of_many():
    """As the plain search does: of equal numbers the first ones, excluded ones last."""
    draw = np.random.default_rng(0)
    for size, k, different in ((300, 4, 3), (5000, 4, 50), (5000, 12, 5000), (2560, 9, 2)):
        numbers = draw.integers(0, different, (3, size)).astype(np.float32)
        numbers[draw.random((3, size)) < 0.3] = -np.inf
        numbers[2, k // 2 :] = -np.inf
        for found, expected in zip(module._top_k(jax.numpy.asarray(numbers), k), jax.lax.top_k(numbers, k)):
            assert (found == expected).all(), (size, k)
