"""How a folder generates: its token ids and settings, read and written back; prefixes and scores."""

import dataclasses
import json
import warnings

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

import transformer_zoo as zoo
from transformer_zoo import registry
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.generation import generate as generation
from transformer_zoo.generation import published
from transformer_zoo.generation.beam import Beam
from transformer_zoo.generation.generate import generate
from transformer_zoo.generation.sampling import Greedy, Sample
from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.pretrained import Bundle

FILE = published.FILE


@pytest.fixture(autouse=True)
def small_bucket(monkeypatch):
    monkeypatch.setattr(generation, "BUCKET", 8)


def small(family, **fields):
    """A small Config with these token ids."""
    return dataclasses.replace(families.small(family), num_layers=1, **fields)


def loaded(tmp_path, settings, config, **of_config):
    """What is read from a folder with these settings, and those of config.json."""
    (tmp_path / FILE).write_text(json.dumps(settings))
    return published.load(tmp_path, of_config, config)


# ---- token ids


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"eos_token_id": [59, 24]}, {"eos": (59, 24)}),
        ({"eos_token_id": 24}, {"eos": (24,)}),
        ({"eos_token_id": None}, {"eos": ()}),
        ({"eos_token_id": 2, "decoder_start_token_id": 7, "forced_bos_token_id": 8, "forced_eos_token_id": [9, 2],
          "pad_token_id": 4, "bos_token_id": 5},
         {"eos": (2,), "decoder_start": 7, "forced_bos": 8, "forced_eos": (9, 2), "pad": 4, "bos": 5}),
        ({"eos_token_id": 2, "bos_token_id": 5, "decoder_start_token_id": None},
         {"eos": (2,), "bos": 5, "decoder_start": 5}),
    ],
)  # fmt: skip
def test_token_ids_of_the_file_win_over_config_json(tmp_path, settings, expected):
    """As in the reference, those that the file lacks are none, save the decoder's start, which generation needs."""
    config = small("bart", eos_id=3, decoder_start_id=6, pad_id=1, forced_bos_id=10, forced_eos_id=3)
    read = loaded(tmp_path, settings, config, eos_token_id=3, num_beams=4)
    assert read.token_ids == TokenIds(**{"decoder_start": 6} | expected)
    assert type(read.sampling) is Greedy  # nothing of config.json counts
    assert TokenIds.read(read.token_ids.write()) == read.token_ids


def test_token_ids_of_config_json(tmp_path):
    config = small("bart", eos_id=3, decoder_start_id=6, pad_id=1, forced_bos_id=10, forced_eos_id=3)
    read = published.load(
        tmp_path, {"eos_token_id": [3, 5], "num_beams": 2, "d_model": 32, "pad_token_id": None}, config
    )
    own = TokenIds.of_config(config)
    assert read.token_ids == dataclasses.replace(own, eos=(3, 5)) and read.sampling == Beam(num_beams=2)
    assert own == TokenIds(eos=(3,), pad=1, decoder_start=6, forced_bos=10, forced_eos=(3,))
    gpt2 = small("gpt2", eos_id=None)
    assert TokenIds.of_config(gpt2) == TokenIds() and TokenIds().write() == {"eos_token_id": None}


def test_a_config_json_with_several_ends():
    for family in ("gpt2", "t5", "bart"):
        m = zoo.from_config(family, small(family, eos_id=7))
        settings = zoo.checkpoints.config_map.write(registry.family(family), m.config, m.model.task)
        for value, expected in (([7, 3], 7), ([], None), (None, None)):
            read = zoo.checkpoints.config_map.read(registry.family(family), settings | {"eos_token_id": value})
            assert read.eos_id == expected


def test_a_file_without_an_end_is_said(tmp_path):
    with pytest.warns(UserWarning, match=rf"{FILE} has no eos_token_id, so no token ends a text: .* 7, does not count"):
        assert loaded(tmp_path, {"num_beams": 2}, small("gpt2", eos_id=7)).token_ids.eos == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"do_sample": True, "top_p": 0}, r"top_p=0 must lie in \(0, 1\]"),
        ({"do_sample": True, "top_k": -1}, "top_k=-1 must be a number of tokens"),
        ({"do_sample": True, "temperature": "hot"}, "temperature is a text"),
        ({"num_beams": 2.5}, "num_beams is a number"),
        ({"num_beams": 2, "num_return_sequences": 3}, "search with more beams"),
        ({"bad_words_ids": [3]}, "not iterable"),
        ({"bad_words_ids": [[]]}, "at least one token"),
        ({"sequence_bias": [[[3], float("nan")]]}, "a bias must be a number"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', where a token id or a list of them is expected"),
        ({"decoder_start_token_id": [1, 2]}, r"decoder_start_token_id is \[1, 2\], where a token id is expected"),
    ],
)
def test_settings_that_cannot_be_keep_nothing_from_loading(tmp_path, settings, message):
    """A warning names the file; generation then needs a strategy of its own; the file is kept as it was."""
    config = small("gpt2", eos_id=7)
    folder = tmp_path / "saved"
    zoo.save_pretrained(folder, zoo.from_config("gpt2", config))
    (folder / FILE).write_text(json.dumps(settings := {"eos_token_id": 5} | settings))
    with pytest.warns(UserWarning, match=rf"saved/{FILE}: .*{message}"):
        m = zoo.from_pretrained(folder)
    with pytest.raises(ValueError, match=rf"saved/{FILE}: .*{message}.*sampling=Greedy"):
        generate(m, [[1]], max_new_tokens=2)
    if settings["eos_token_id"] == 5 and "temperature" in settings:
        assert generate(m, [[1]], max_new_tokens=2, sampling=Greedy()).shape == (1, 2)
    zoo.save_pretrained(tmp_path / "again", m)
    assert (
        json.loads((tmp_path / "again" / FILE).read_text(), parse_constant=str).items()
        >= json.loads(json.dumps(settings), parse_constant=str).items()
    )


def test_a_model_that_does_not_generate_reads_no_settings(tmp_path):
    m = zoo.from_config("t5", families.small("t5"), task="base")
    zoo.save_pretrained(tmp_path, m)
    assert not (tmp_path / FILE).exists()
    (tmp_path / FILE).write_text("[")
    assert zoo.from_pretrained(tmp_path).token_ids is None
    with pytest.raises(ValueError, match=f"{FILE} is not JSON"):
        zoo.from_pretrained(tmp_path, task="seq2seq-lm")


def test_a_folder_is_written_whole(tmp_path):
    """With all token ids, and with what is not supported while nothing has changed."""
    settings = {
        "eos_token_id": [5, 7], "decoder_start_token_id": 1, "num_beams": 2, "penalty_alpha": 0.6, "do_sample": True,
        "bad_words_ids": [[3, 4]], "sequence_bias": [[[8, 9], -1.5]], "max_length": 20, "transformers_version": "5",
    }  # fmt: skip
    m = zoo.from_config("bart", small("bart", eos_id=3, decoder_start_id=6, num_decoder_layers=1))
    zoo.save_pretrained(tmp_path / "a", m)
    ids = {"eos_token_id": 3, "pad_token_id": 1, "decoder_start_token_id": 6, "forced_eos_token_id": 2}
    assert json.loads((tmp_path / "a" / FILE).read_text()) == ids
    (tmp_path / "a" / FILE).write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="penalty_alpha=0.6, do_sample=True, which is not supported"):
        m = zoo.from_pretrained(tmp_path / "a")
    assert m.sampling.bad_words == ((3, 4),) and m.sampling.sequence_bias == (((8, 9), -1.5),)
    zoo.save_pretrained(tmp_path / "b", m)
    assert json.loads((tmp_path / "b" / FILE).read_text()) == settings
    zoo.save_pretrained(tmp_path / "c", m.replace(sampling=Greedy(begin_suppressed=(4,))))
    kept = {"eos_token_id": [5, 7], "decoder_start_token_id": 1, "begin_suppress_tokens": [4]}
    assert json.loads((tmp_path / "c" / FILE).read_text()) == kept


# ---- generation


@pytest.fixture(scope="module")
def bart():
    """A model that begins with token 6, and whose answers are rarely alike."""
    config = small("bart", eos_id=None, decoder_start_id=6, forced_eos_id=None, num_decoder_layers=1)
    case = next(case for case in families.cases("cache") if case.family == "bart")
    case = dataclasses.replace(case, config=dataclasses.replace(config, max_length=24))
    return Bundle(case.model, case.params(scale=0.5), case.config)


ROWS = [[5, 9, 30], [7, 31, 12, 8], [44]]


@pytest.mark.parametrize("sampling", [Greedy(), Beam(num_beams=2)], ids=str)
def test_a_row_ends_with_any_of_the_ends(bart, sampling):
    free = generate(bart, ROWS, max_new_tokens=8, sampling=sampling)
    ends = (int(free[0, 2]), int(free[1, 4]), 10**6, -1)  # those outside of the vocabulary are never generated
    m = bart.replace(token_ids=TokenIds(eos=ends, decoder_start=6))
    new = generate(m, ROWS, max_new_tokens=8, sampling=sampling)
    for row in new.tolist():
        first = min((i for i, token in enumerate(row) if token in ends), default=7)
        assert set(row[first:]) <= {row[first]}
    assert any(row[3] in ends for row in new.tolist())
    assert (generate(m, ROWS, max_new_tokens=8, sampling=sampling, stop=3) == new).all() or (new == 3).any()


def test_a_start_and_forced_tokens(bart):
    ids = TokenIds(decoder_start=9, forced_bos=11, forced_eos=(12,))
    new = generate(bart.replace(token_ids=ids), ROWS, max_new_tokens=4, sampling=Greedy())
    assert (new[:, 0] == 11).all() and (new[:, -1] == 12).all()
    config = dataclasses.replace(bart.config, decoder_start_id=9, forced_bos_id=11, forced_eos_id=12)
    assert (generate(bart.replace(model=bart.model.clone(config=config)), ROWS, max_new_tokens=4) == new).all()
    with pytest.raises(ValueError, match=r"decoder_start_token_id\[0, 0\] is 900, outside of the vocabulary"):
        generate(bart.replace(token_ids=TokenIds(decoder_start=900)), ROWS, max_new_tokens=2)


def test_a_prefix_of_the_target(bart):
    """The rest of a greedy answer follows its beginning, of whatever length; padding changes nothing."""
    with jax.enable_x64(True):
        free = generate(bart, ROWS, max_new_tokens=8)
        prefix = [free[0, :3].tolist(), free[1, :1].tolist(), free[2, :2].tolist()]
        new = generate(bart, ROWS, max_new_tokens=5, prefix=prefix)
        assert [new[i].tolist() for i in range(3)] == [
            free[i, len(prefix[i]) : len(prefix[i]) + 5].tolist() for i in range(3)
        ]
        started = generate(bart, ROWS, max_new_tokens=5, prefix=[[6, *row] for row in prefix])
        assert (started == new).all()  # the start token is not added a second time
        forced = bart.replace(token_ids=TokenIds(decoder_start=6, forced_bos=11))
        assert (generate(forced, ROWS, max_new_tokens=5, prefix=prefix) == new).all()
        found = generate(bart, ROWS, max_new_tokens=5, prefix=prefix, num_beams=2, output_scores=True)
        assert found.answers.shape == found.log_probs.shape == (3, 5) and found.scores.shape == (3,)
    for prefix, message in (
        ([[1]], "there are 3 prompts and 1 prefixes"),
        ([[1], [90], [1]], r"prefix 1\[0, 0\] is 90, outside of the vocabulary"),
        ("so", "no tokenizer"),
        ([[1] * 22, [1], [1]], "24 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(bart, ROWS, max_new_tokens=5, prefix=prefix)
    gpt2 = zoo.from_config("gpt2", small("gpt2"))
    with pytest.raises(ValueError, match="prefix is what an encoder-decoder's answers begin with"):
        generate(gpt2, ROWS, max_new_tokens=2, prefix=[[1]] * 3)


def test_a_prefix_in_text(monkeypatch):
    """Without the frame of a text; the answer is the text that follows it. With a language, it follows its token."""
    tokenizer = Tokenizer.train(["def read(path):\n    return open(path).read()\n"] * 3, 400, kind="t5")
    config = small("t5", vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, decoder_start_id=0)
    m = Bundle(registry.family("t5").Model(config), None, config, tokenizer)
    new, seen = tokenizer.encode("read(path)").ids, []
    monkeypatch.setattr(generation, "_run", lambda *arguments: seen.append(arguments[-1]) or np.tile(new, (2, 1, 1)))
    assert generate(m, ["a", "b"], max_new_tokens=9, prefix="def ") == ["read(path)"] * 2
    assert [row.tolist() for row in seen[0]] == [[0, *tokenizer.encode("def ").ids]] * 2


def test_scores_of_what_was_generated():
    """Each token's log probability, by the rules and filters; of a beam search, the scores that it ordered by."""
    prompts, stops, max_new = toy.read_of(8, 1), np.asarray(toy.STOPS, np.int32), 6
    logits_of = toy.toy(1)
    for strategy in (
        Greedy(no_repeat_ngram_size=1),
        Sample(temperature=0.8, top_k=4),
        Beam(num_beams=3, length_penalty=2.0, repetition_penalty=1.3, num_return_sequences=2),
    ):
        with jax.enable_x64(True):
            answer = toy.compiled(
                strategy, prompts, prompts >= 0, np.int32(max_new), stops, jax.random.key(0), seed=1, scored=True
            )
        new, score, log_prob = (np.asarray(x)[..., :max_new] for x in answer)
        for i, row in enumerate(prompts.tolist()):
            for j, tokens in enumerate(new[i].tolist()):
                length = next((n + 1 for n, token in enumerate(tokens) if token in toy.STOPS), max_new)
                assert (log_prob[i, j, length:] == 0).all()
                for n in range(length):
                    logits = logits_of(np, np.array([[*row, *tokens[:n]]]), toy.READ + n)[0]
                    wanted = strategy_log_probs(strategy, logits, row, tokens[:n], max_new)[tokens[n]]
                    assert log_prob[i, j, n] == pytest.approx(wanted, abs=1e-9)
                total = float(strategy.score(jnp.asarray(log_prob[i, j].sum()), length))
                if isinstance(strategy, Beam):
                    assert total == pytest.approx(score[i, j], abs=1e-5)


def strategy_log_probs(strategy, logits, row, new, max_new):
    """The log probabilities that a strategy chooses by, in plain numpy."""
    log_softmax = lambda x: x - x.max() - np.log(np.exp(x - x.max()).sum())
    if isinstance(strategy, Beam):
        return toy.under_rules(log_softmax(logits), strategy, row, new, max_new, toy.STOPS)
    scores = toy.under_rules(logits, strategy, row, new, max_new, toy.STOPS)
    if isinstance(strategy, Sample):
        scores = scores / strategy.temperature
        scores = np.where(scores >= np.sort(scores)[-strategy.top_k], scores, -np.inf)
    return log_softmax(scores)


def test_scores_of_a_model(bart):
    m = bart.replace(token_ids=TokenIds(eos=(3,), decoder_start=6))
    one = generate(m, ROWS, max_new_tokens=4, output_scores=True)
    assert (one.answers == generate(m, ROWS, max_new_tokens=4)).all() and one.log_probs.shape == (3, 4)
    np.testing.assert_allclose(one.scores, one.log_probs.sum(axis=1), rtol=1e-6)
    target = np.concatenate([np.full((3, 1), 6), one.answers[:, :-1]], axis=1).astype(np.int32)
    for i, row in enumerate(ROWS):
        logits_TV = m(np.asarray([row]), target[i : i + 1]).logits[0]
        expected = np.asarray(jax.nn.log_softmax(logits_TV, axis=-1))[np.arange(4), one.answers[i]]
        np.testing.assert_allclose(one.log_probs[i], expected, atol=1e-4)
    several = generate(m, ROWS, max_new_tokens=4, num_beams=3, num_return_sequences=2, output_scores=True)
    assert several.answers.shape == several.log_probs.shape == (3, 2, 4) and several.scores.shape == (3, 2)
    assert (np.diff(several.scores, axis=1) <= 1e-6).all()


def test_several_samples_to_a_prompt():
    """Each has random numbers of its own; one is as before; a row depends on no other."""
    prompts, valid, stops = toy.read_of(4, 6), np.ones((4, toy.READ), bool), np.zeros(0, np.int32)
    draw = lambda strategy, rows: np.asarray(
        toy.compiled(strategy, prompts[:rows], valid[:rows], np.int32(8), stops, jax.random.key(3), seed=3)
    )
    many = draw(Sample(temperature=1.5, num_return_sequences=3), 4)
    assert many.shape == (4, 3, 8) and len({tuple(row) for row in many.reshape(-1, 8).tolist()}) > 8
    assert (draw(Sample(temperature=1.5, num_return_sequences=3), 2) == many[:2]).all()
    rules = Sample(temperature=1.5, num_return_sequences=3, suppressed=(1, 4), no_repeat_ngram_size=1)
    assert not np.isin(draw(rules, 4), (1, 4)).any()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [  # of the probabilities 0.5, 0.25, 0.15, 0.06 and 0.04; their entropy is 1.27 nats, near to that of 0.25
        ({"min_p": 0.3}, [0, 1, 2]),
        ({"min_p": 1.0}, [0]),
        ({"min_p": 0.0}, [0, 1, 2, 3, 4]),
        ({"typical_p": 0.2}, [1]),
        ({"typical_p": 0.7}, [0, 1]),
        ({"typical_p": 0.8}, [0, 1, 2]),
        ({"typical_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"epsilon_cutoff": 0.1}, [0, 1, 2]),
        ({"epsilon_cutoff": 0.9}, [0]),
        ({"eta_cutoff": 0.2}, [0, 1, 2]),  # the square root of 0.2 times exp(-1.27) is 0.125
        ({"top_k": 3, "min_p": 0.2, "epsilon_cutoff": 0.2}, [0, 1]),
    ],
)  # fmt: skip
def test_filters_by_hand(settings, kept):
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.15, 0.06, 0.04]]))
    assert np.flatnonzero(np.isfinite(jax.jit(Sample(**settings).filter)(logits)[0])).tolist() == kept


@pytest.mark.parametrize(
    "settings",
    [{"min_p": -0.1}, {"min_p": 1.5}, {"typical_p": 0.0}, {"epsilon_cutoff": 1.0}, {"eta_cutoff": -1.0},
     {"num_return_sequences": 0}, {"encoder_repetition_penalty": 0.0}, {"min_length": -1}],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sample(**settings)


# ---- prompts


def test_a_prompt_with_special_tokens(monkeypatch):
    """Special tokens that a decoder's prompt spells out are tokens."""
    tokenizer = Tokenizer.train(["def read(path):\n    return open(path).read()\n"] * 3, 300)
    seen, ids = [], lambda text: tokenizer.encode(text).ids.tolist()
    monkeypatch.setattr(generation, "_run", lambda m, rows, *_: seen.append(rows) or np.zeros((1, 1, 1), np.int32))
    for text, expected in (
        ("read<|endoftext|>path", [*ids("read"), tokenizer.eos_id, *ids("path")]),
        ("", [tokenizer.bos_id]),
    ):
        config = small("gpt2", vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
        m = Bundle(registry.family("gpt2").Model(config), None, config, tokenizer)
        generate(m, text, max_new_tokens=1)
        assert seen.pop()[0].tolist() == expected
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generate(m.replace(token_ids=TokenIds(bos=4)), text, max_new_tokens=1)
        assert seen.pop()[0].tolist() == (expected if text else [4])
