"""BLEU and ROUGE beside figures worked out by hand."""

import math
import subprocess
import sys

import pytest

from transformer_zoo.evaluation import text


def test_bleu_of_a_corpus():
    hypotheses = ["the cat sat on the mat", "a dog"]
    assert text.bleu(hypotheses, hypotheses) == pytest.approx(100)
    # Of 6 + 2 words 5 + 1 match, of 5 + 1 pairs 3 + 0, of 4 triples 2, of 3 quadruples 1; as long as the references.
    references = ["the cat sat on a mat", "one dog"]
    precisions = [6 / 8, 3 / 6, 2 / 4, 1 / 3]
    assert text.bleu(hypotheses, references) == pytest.approx(100 * math.prod(precisions) ** (1 / 4))
    short = text.bleu(["the cat sat on the"], ["the cat sat on the mat"])
    assert short == pytest.approx(100 * math.exp(1 - 6 / 5))  # too short by a word
    assert text.bleu(["The Cat sat on it"], ["the cat sat on it"]) < 100
    assert text.bleu(["The Cat sat on it"], ["the cat sat on it"], lower_case=True) == pytest.approx(100)
    assert text.bleu([""], ["the cat sat on it"]) == 0


def test_bleu_is_of_the_corpus_and_not_the_mean_of_its_texts():
    pairs = ["the cat sat on the mat", "no"], ["the cat sat on the mat", "yes"]
    alone = [text.bleu([hypothesis], [reference]) for hypothesis, reference in zip(*pairs)]
    assert text.bleu(*pairs) > sum(alone) / 2 + 10


def test_bleu_says_nothing_of_texts_that_look_cut_into_tokens(caplog):
    lines = ["print ( x ) ."] * 200
    text.bleu(lines, lines)
    assert not caplog.records


def test_rouge():
    scores = text.rouge(["the cat sat"], ["the cat sat on the mat"])
    f1 = lambda precision, recall: 100 * 2 * precision * recall / (precision + recall)
    assert scores == {
        "rouge1": pytest.approx(f1(1, 3 / 6)),
        "rouge2": pytest.approx(f1(1, 2 / 5)),
        "rougeL": pytest.approx(f1(1, 3 / 6)),
    }
    # The longest common subsequence may have gaps, and keeps the order.
    assert text.rouge(["mat the cat"], ["the fat cat"])["rougeL"] == pytest.approx(f1(2 / 3, 2 / 3))
    assert text.rouge(["returning"], ["returns"])["rouge1"] == pytest.approx(100)
    assert text.rouge(["returning"], ["returns"], stem=False)["rouge1"] == 0
    half = text.rouge(["the cat", ""], ["the cat", "a dog"])
    assert half["rouge1"] == half["rougeL"] == pytest.approx(50)


@pytest.mark.parametrize("metric", [text.bleu, text.rouge])
def test_what_has_no_score(metric):
    with pytest.raises(ValueError, match="2 hypotheses and 1 references: give equal numbers"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="there are no hypotheses to score"):
        metric([], [])
    with pytest.raises(ValueError, match="references are a list of texts, not one text: 'abc'"):
        metric(["a", "b", "c"], "abc")


def test_libraries_are_loaded_by_those_who_ask_for_a_score():
    code = "import sys, transformer_zoo.evaluation.text; print([m for m in ('sacrebleu', 'nltk') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
