"""How a folder generates: its token ids and settings, read and written back; prefixes and scores."""

import dataclasses
import json
import warnings

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import toy

import transformer_zoo as zoo
from transformer_zoo import registry
from transformer_zoo.checkpoints import config_map
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


def random_model(family, task=None, scale=0.2, **fields):
    """A small model with random parameters."""
    case = families.main(family)
    case = dataclasses.replace(case, config=small(family, **fields), task=task or case.task)
    return Bundle(case.model, case.params(scale=scale), case.config)


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
        ({"eos_token_id": [24.0, 3], "pad_token_id": 5.0}, {"eos": (24, 3), "pad": 5}),
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
        module, config = registry.family(family), small(family, eos_id=7)
        settings = config_map.write(module, config, module.Model(config).task)
        for value, expected in (([7, 3], 7), ([], None), (None, None)):
            read = config_map.read(module, settings | {"eos_token_id": value})
            assert read.eos_id == expected


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_several_ends_of_a_config_json_are_kept(tmp_path, family):
    """Where there is no generation_config.json: in `generate`, in the saved folder, and in what is loaded from it."""
    zoo.save_pretrained(tmp_path / "a", random_model(family, eos_id=7))
    (tmp_path / "a" / FILE).unlink()
    config = tmp_path / "a" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": [7, 3]}))
    m = zoo.from_pretrained(tmp_path / "a")
    zoo.save_pretrained(tmp_path / "b", m)
    assert json.loads((tmp_path / "b" / FILE).read_text())["eos_token_id"] == [7, 3]
    assert m.token_ids == zoo.from_pretrained(tmp_path / "b").token_ids and m.token_ids.eos == (7, 3)


@pytest.mark.parametrize("family", ["gpt2", "bert", "bart"])
def test_a_classifier_keeps_the_token_ids_of_its_config_json(tmp_path, family):
    """The reference scores a row of GPT-2 by the token before its padding."""
    zoo.save_pretrained(tmp_path, random_model(family, task="sequence-classification"))
    config, ids = tmp_path / "config.json", {"pad_token_id": 4, "bos_token_id": 5}
    config.write_text(json.dumps(json.loads(config.read_text()) | ids))
    zoo.save_pretrained(tmp_path, zoo.from_pretrained(tmp_path))
    assert json.loads(config.read_text()).items() >= ids.items() and not (tmp_path / FILE).exists()
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token_id": "x"}))
    with pytest.warns(UserWarning, match="config.json: bos_token_id is 'x', where a token id is expected"):
        zoo.from_pretrained(tmp_path)


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
        ({"num_beams": 2, "early_stopping": "x" * 10**5}, r"early_stopping=.*\(\d+,\d+ characters\)"),
        ({"num_beams": 2, "num_return_sequences": 3}, "search with more beams"),
        ({"bad_words_ids": [3]}, r"bad_words=\[3\] must be sequences of token ids"),
        ({"bad_words_ids": [[]]}, "at least one token"),
        ({"suppress_tokens": [1.5]}, "suppressed has 1.5 in it, which is no token id"),
        ({"num_beams": 2, "length_penalty": float("inf")}, "length_penalty=inf must be a finite number"),
        ({"sequence_bias": [[[3], float("nan")]]}, "a bias must be a number"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', where a token id or a list of them is expected"),
        ({"decoder_start_token_id": [1, 2]}, r"decoder_start_token_id is \[1, 2\], where a token id is expected"),
        ({"bos_token_id": True}, "bos_token_id is True, where a token id is expected"),
        ({"eos_token_id": [2.5]}, r"eos_token_id is \[2.5\], where a token id or a list"),
        ({"forced_eos_token_id": 10**30}, "forced_eos_token_id is 10+, where a token id or a list"),
    ],
)
def test_settings_that_cannot_be_keep_nothing_from_loading(tmp_path, settings, message):
    """A warning names the file; generation then needs a strategy of its own; the file is kept as it was."""
    folder = tmp_path / "saved"
    zoo.save_pretrained(folder, random_model("gpt2", eos_id=7))
    (folder / FILE).write_text(json.dumps(settings := {"eos_token_id": 5} | settings))
    with pytest.warns(UserWarning, match=rf"saved/{FILE}: .*{message}"):
        m = zoo.from_pretrained(folder)
    with pytest.raises(ValueError, match=rf"saved/{FILE}: .*{message}.*such as temperature=0"):
        generate(m, [[1]], max_new_tokens=2)
    assert len(str(pytest.raises(ValueError, generate, m, [[1]], max_new_tokens=2).value)) < 600
    if settings["eos_token_id"] == 5 and "temperature" in settings:
        for own in ({"sampling": Greedy()}, {"temperature": 0}):
            assert generate(m, [[1]], max_new_tokens=2, **own).shape == (1, 2)
    zoo.save_pretrained(tmp_path / "again", m)
    assert (
        json.loads((tmp_path / "again" / FILE).read_text(), parse_constant=str).items()
        >= json.loads(json.dumps(settings), parse_constant=str).items()
    )


def test_a_model_that_does_not_generate_reads_no_settings(tmp_path):
    zoo.save_pretrained(tmp_path, random_model("t5", task="base"))
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
    zoo.save_pretrained(tmp_path / "a", random_model("bart", eos_id=3, decoder_start_id=6))
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
    """A model whose answers begin with token 6, and no token ends them."""
    config = {"eos_id": None, "decoder_start_id": 6, "forced_eos_id": None, "num_decoder_layers": 1}
    return random_model("bart", scale=0.5, **config)


ROWS = [[5, 9, 30], [7, 31, 12, 8], [44]]


def test_a_row_ends_with_any_of_the_ends(bart):
    free = generate(bart, ROWS, max_new_tokens=8)
    ends = (int(free[0, 2]), int(free[1, 4]), 10**6, -1)  # those outside of the vocabulary are never generated
    new = generate(bart.replace(token_ids=TokenIds(eos=ends, decoder_start=6)), ROWS, max_new_tokens=8)
    for row, until in zip(free.tolist(), new.tolist()):
        end = min((i + 1 for i, token in enumerate(row) if token in ends), default=8)
        assert until == row[:end] + row[end - 1 : end] * (8 - end)
    assert any(row[3] in ends for row in new.tolist())


def test_a_start_and_forced_tokens(bart):
    ids = TokenIds(decoder_start=9, forced_bos=11, forced_eos=(12,))
    new = generate(bart.replace(token_ids=ids), ROWS, max_new_tokens=4, sampling=Greedy())
    assert (new[:, 0] == 11).all() and (new[:, -1] == 12).all()
    with pytest.raises(ValueError, match=r"decoder_start_token_id\[0, 0\] is 900, outside of the vocabulary"):
        generate(bart.replace(token_ids=TokenIds(decoder_start=900)), ROWS, max_new_tokens=2)


def test_a_first_token_is_forced_behind_a_single_one(tmp_path):
    """As in the reference, by the checkpoint's id; a strategy's own is forced behind any prompt."""
    gpt2 = random_model("gpt2", eos_id=None).replace(token_ids=TokenIds(forced_bos=11))
    rows, rules = [[5], [5, 9, 30]], {"begin_suppressed": tuple(range(60)), "max_new_tokens": 2}
    new = generate(gpt2, rows, sampling=Greedy(**rules))
    assert new[0, 0] == 11 and new[0, 1] >= 60 and new[1, 0] >= 60  # those suppressed at the beginning come after it
    assert (generate(gpt2, rows, max_new_tokens=1, sampling=Greedy(forced_first=12)) == 12).all()
    assert (generate(gpt2, rows, max_new_tokens=1, forced_bos_token_id=13)[:, 0] == 13).tolist() == [True, False]
    with pytest.raises(ValueError, match="decoder_start_token_id is what an encoder-decoder's answers start with"):
        generate(gpt2, rows, max_new_tokens=1, decoder_start_token_id=3)
    with pytest.warns(UserWarning, match="forced_first=12, which generation_config.json forces behind a single token"):
        zoo.save_pretrained(tmp_path, gpt2.replace(sampling=Greedy(forced_first=12)))


def test_token_ids_and_lengths_of_a_call(bart):
    free = generate(bart, ROWS, max_new_tokens=8)
    ends = [int(free[0, 2]), np.int32(free[1, 4])]
    for given in (ends, (*map(float, ends),), np.asarray(ends)):
        new = generate(bart, ROWS, max_length=9, eos_token_id=given, pad_token_id=0, use_cache=True, num_beam_groups=1)
        ended = bart.replace(token_ids=TokenIds(eos=tuple(map(int, ends)), decoder_start=6))
        assert (new == generate(ended, ROWS, max_new_tokens=8)).all()
    assert (new != free).any()
    assert (generate(bart, ROWS, max_new_tokens=8, eos_token_id=[]) == free).all()  # no token ends a row
    started = bart.replace(token_ids=TokenIds(decoder_start=9, forced_eos=(12, 13)))
    named = generate(bart, ROWS, max_new_tokens=3, decoder_start_token_id=9, forced_eos_token_id=[12, 13])
    assert (named == generate(started, ROWS, max_new_tokens=3)).all()


def test_a_call_takes_the_rest_from_the_file(tmp_path):
    """Settings that wait in a file for a strategy which a call then asks for."""
    config = small("gpt2", eos_id=7)
    settings = {"temperature": 0.6, "top_p": 0.9, "length_penalty": 0.5, "eos_token_id": 7, "no_repeat_ngram_size": 2}
    read = loaded(tmp_path, settings, config)
    m = Bundle(None, None, config, sampling=read.sampling, generation=read)
    assert read.sampling == Greedy(no_repeat_ngram_size=2)
    sample = Sample(temperature=0.6, top_p=0.9, top_k=50, no_repeat_ngram_size=2)
    assert published.build(m, {"do_sample": True}) == sample
    assert published.build(m, {"temperature": 0.7}) == dataclasses.replace(sample, temperature=0.7)
    assert published.build(m, {"num_beams": 3}) == Beam(num_beams=3, length_penalty=0.5, no_repeat_ngram_size=2)
    other = m.replace(sampling=Greedy())  # not the file's
    assert published.build(other, {"do_sample": True}) == Sample(top_k=50)


def test_a_prefix_of_the_target(bart):
    """The rest of a greedy answer follows its beginning, of whatever length; padding changes nothing."""
    free = generate(bart, ROWS, max_new_tokens=8)
    prefix = [free[0, :3].tolist(), free[1, :1].tolist(), free[2, :2].tolist()]
    new = generate(bart, ROWS, max_new_tokens=5, prefix=prefix)
    for row, before, found in zip(free.tolist(), prefix, new.tolist()):
        assert found == row[len(before) : len(before) + 5]
    started = generate(bart, ROWS, max_new_tokens=5, prefix=[[6, *row] for row in prefix])
    assert (started == new).all()  # the start token is not added a second time
    forced = bart.replace(token_ids=dataclasses.replace(TokenIds.of_config(bart.config), forced_bos=11))
    assert (generate(forced, ROWS, max_new_tokens=5, prefix=prefix) == new).all()
    for prefix, message in (
        ([[1]], "there are 3 prompts and 1 prefixes"),
        ([[1], [90], [1]], r"prefix 1\[0, 0\] is 90, outside of the vocabulary"),
        ("so", "no tokenizer"),
        ([[1] * 22, [1], [1]], "24 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(bart, ROWS, max_new_tokens=5, prefix=prefix)
    gpt2 = Bundle(registry.family("gpt2").Model(config := small("gpt2")), None, config)
    with pytest.raises(ValueError, match="prefix is what an encoder-decoder's answers begin with"):
        generate(gpt2, ROWS, max_new_tokens=2, prefix=[[1]] * 3)


def test_a_prefix_in_text(monkeypatch):
    """Without the frame of a text; the answer is the text that follows it. With a language, it follows its token."""
    tokenizer = Tokenizer.train(["def read(path):\n    return open(path).read()\n"] * 3, 400, kind="t5")
    config = small("t5", vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, decoder_start_id=0)
    m = Bundle(registry.family("t5").Model(config), None, config, tokenizer)
    new, seen = tokenizer.encode("read(path)").ids, []
    monkeypatch.setattr(generation, "_run", lambda asked: seen.append(asked.targets) or np.tile(new, (2, 1, 1)))
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
    """They are the model's log probabilities, and the best answer comes first."""
    found = generate(bart, ROWS, max_new_tokens=4, num_beams=2, num_return_sequences=2, output_scores=True)
    assert found.answers.shape == found.log_probs.shape == (3, 2, 4)
    np.testing.assert_allclose(found.scores, found.log_probs.sum(axis=2) / 4, rtol=1e-6)
    assert (np.diff(found.scores, axis=1) <= 1e-6).all()
    source, valid = np.zeros((3, 4), np.int32), np.zeros((3, 4), bool)
    for i, row in enumerate(ROWS):
        source[i, : len(row)], valid[i, : len(row)] = row, True
    logits = jax.jit(lambda source, target: bart(source, target, valid_BS=valid).logits)
    for n in range(2):
        target = np.insert(found.answers[:, n, :-1], 0, 6, axis=1).astype(np.int32)
        log_probs_BTV = jax.nn.log_softmax(logits(source, target), axis=-1)
        expected = np.take_along_axis(np.asarray(log_probs_BTV), found.answers[:, n, :, None], axis=2)[..., 0]
        np.testing.assert_allclose(found.log_probs[:, n], expected, atol=1e-4)


def test_several_samples_to_a_prompt():
    """Each has random numbers of its own; one is as before; a row depends on no other."""
    prompts, valid, stops = toy.read_of(4, 6), np.ones((4, toy.READ), bool), np.zeros(0, np.int32)
    draw = lambda strategy, rows: np.asarray(
        toy.compiled(strategy, prompts[:rows], valid[:rows], np.int32(8), stops, jax.random.key(3), seed=3)
    )
    strategy = Sample(temperature=1.5, num_return_sequences=3, suppressed=(1, 4))
    many = draw(strategy, 4)
    assert many.shape == (4, 3, 8) and len({tuple(row) for row in many.reshape(-1, 8).tolist()}) > 8
    assert (draw(strategy, 2) == many[:2]).all() and not np.isin(many, (1, 4)).any()


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
    monkeypatch.setattr(generation, "_run", lambda asked: seen.append(asked.rows) or np.zeros((1, 1, 1), np.int32))
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


def test_a_prompt_in_its_tokenizers_frame(tmp_path, monkeypatch):
    """All of it, as in the reference: also what stands behind the text."""
    Tokenizer.train(["def read(path):\n    return open(path).read()\n"] * 3, 300).save(tmp_path)
    file = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    end = file.token_to_id("<|endoftext|>")
    template = {"single": "<|endoftext|> $A <|endoftext|>", "special_tokens": [("<|endoftext|>", end)]}
    file.post_processor = tokenizers.processors.TemplateProcessing(**template)
    file.save(str(tmp_path / "tokenizer.json"))
    tokenizer, seen = Tokenizer.load(tmp_path), []
    config = small("gpt2", vocab_size=tokenizer.vocab_size, eos_id=end)
    m = Bundle(registry.family("gpt2").Model(config), None, config, tokenizer)
    monkeypatch.setattr(generation, "_run", lambda asked: seen.extend(asked.rows) or np.zeros((2, 1, 1), np.int32))
    generate(m, ["read", ""], max_new_tokens=1)
    assert [row.tolist() for row in seen] == [[end, *tokenizer.encode("read").ids, end], [end]]
