"""Exports with a vocabulary trained here: the reference's tokenizer gives its model the inputs that ours gets, so that
both have the same probabilities."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import transformer_zoo as zoo  # noqa: E402
from transformer_zoo import registry  # noqa: E402
from transformer_zoo.data.tokenizers import Kind, Tokenizer  # noqa: E402
from transformer_zoo.pretrained import Bundle, from_pretrained  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
TEXTS = ("The door is open.", "Is it raining?", "A long text, and it goes on. " * 12, "Ann moved to New York.")
PAIRS = tuple(zip(TEXTS, TEXTS[1:] + TEXTS[:1]))
LENGTH = 24
KINDS: dict[str, Kind] = {
    "roberta": "roberta",
    "mpnet": "roberta",
    "bart": "roberta",
    "gpt2": "bpe",
    "t5": "t5",
}  # others: wordpiece


@functools.cache
def tokenizer(kind: Kind) -> Tokenizer:
    return Tokenizer.train(list(TEXTS), 380, kind=kind)


def exported(folder: Path, family: str, task: str, own: Tokenizer, **settings: Any) -> Bundle:
    """A small model of random numbers, as it is read from its export."""
    config = registry.family(family).Config
    sizes = {"vocab_size": 384, "labels": ("no", "yes", "so so"), "num_segments": 2, "pad_id": own.pad_id or 0}
    small = {name: size for name, size in families.SMALL.items() if not name.endswith(("distance", "buckets"))}
    fields = [field.name for field in dataclasses.fields(config) if field.init]
    sizes = {name: value for name, value in {**small, **sizes, **settings}.items() if name in fields}
    model = registry.family(family).Model(config(**sizes), task=task)
    zoo.save_pretrained(folder, Bundle(model, families.random_params(model, 0, 0.5), model.config, own))
    return from_pretrained(folder)


@pytest.mark.parametrize(
    "family", ["albert", "bert", "deberta", "distilbert", "electra", "modernbert", "mpnet", "roberta"]
)
def test_pairs_are_classified_alike(tmp_path: Path, family: str):
    own = tokenizer(KINDS.get(family, "wordpiece"))
    m = exported(tmp_path, family, "sequence-classification", own, num_segments=1 if family == "roberta" else 2)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read.model_max_length == LENGTH
    first = [first for first, _ in PAIRS]
    for texts in ((first,), (first, [second for _, second in PAIRS])):
        given = read(*texts, truncation=True, padding=True, return_tensors="pt")
        assert ("token_type_ids" in given) == ((m.config.num_segments or 0) > 1)
        with torch.no_grad():
            expected = theirs(**given).logits.softmax(-1).numpy()
        inputs = [dict(zip(("text", "text_pair"), one)) for one in zip(*texts)]
        with pytest.warns(UserWarning, match="inputs are longer"):
            found = zoo.predict(m, inputs)
        np.testing.assert_allclose([list(one["scores"].values()) for one in found], expected, atol=1e-5)
    classify = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    assert classify.tokenizer.model_input_names == read.model_input_names
    short = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    assert abs(classify(short)["score"] - zoo.predict(m, short)["score"]) < 1e-5


@pytest.mark.parametrize("task", ["next-sentence", "question-answering", "token-classification"])
def test_segments_of_other_tasks(tmp_path: Path, task: str):
    """The same logits for what the reference's tokenizer gives its model."""
    m = exported(tmp_path, "bert", task, tokenizer("wordpiece"))
    heads = {"next-sentence": "NextSentencePrediction", "question-answering": "QuestionAnswering"}
    theirs = getattr(transformers, f"AutoModelFor{heads.get(task, 'TokenClassification')}").from_pretrained(tmp_path)
    given = transformers.AutoTokenizer.from_pretrained(tmp_path)(*PAIRS[0], return_tensors="pt")
    own = m.tokenizer.encode(*PAIRS[0], template=True)
    assert given["token_type_ids"][0].tolist() == own.segments.tolist() and max(own.segments) == 1
    with torch.no_grad():
        output = theirs.eval()(**given)
    expected = torch.stack([output.start_logits, output.end_logits], -1) if "answer" in task else output.logits
    expected = expected.numpy()
    found = families.apply(m.model, m.params, own.ids[None], own.segments[None]).logits
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal-lm"), ("t5", "seq2seq-lm"), ("bart", "seq2seq-lm")])
def test_models_without_segments_get_none(tmp_path: Path, family: str, task: str):
    own = tokenizer(KINDS[family])
    m = exported(tmp_path, family, task, own)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    given = read(TEXTS[2], truncation=True)
    ids = own.encode(TEXTS[2], template=True).ids
    assert sorted(given) == ["attention_mask", "input_ids"]
    if m.config.max_length is None:
        assert given["input_ids"] == ids.tolist()
    else:
        assert len(given["input_ids"]) == LENGTH < len(ids)
