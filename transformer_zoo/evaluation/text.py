"""The similarity of generated texts to references: BLEU and ROUGE.

All scores are percentages, as papers report them. Empty texts count, and score 0.
"""

from collections.abc import Sequence


def bleu(hypotheses: Sequence[str], references: Sequence[str], *, lower_case: bool = False) -> float:
    """BLEU of a corpus (Papineni et al. 2002), as in sacrebleu (Post 2018) with the settings of WMT: one reference
    each, the tokens of mteval-v13a, exponential smoothing.

    Args:
        hypotheses: the generated texts.
        references: the expected texts.
        lower_case: ignore the case of letters.

    Raises:
        ValueError: no hypotheses, or not as many references.
    """
    _check(hypotheses, references)
    from sacrebleu.metrics import BLEU

    # `force`: no warning about texts that look tokenized already, as code does.
    return BLEU(lowercase=lower_case, force=True).corpus_score(list(hypotheses), [list(references)]).score


def rouge(hypotheses: Sequence[str], references: Sequence[str], *, stem: bool = True) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of texts (Lin 2004), each the mean of their F1, as rouge-score computes it.

    Words are made of the letters a to z and digits; any other character separates them.

    Args:
        hypotheses: the generated texts.
        references: the expected texts.
        stem: compare words without their endings (Porter's stemmer), as most papers on summaries do.

    Returns:
        rouge1, rouge2, rougeL.

    Raises:
        ValueError: no hypotheses, or not as many references.
    """
    _check(hypotheses, references)
    from rouge_score.rouge_scorer import RougeScorer  # takes a second: it imports nltk for the stemmer

    kinds = ("rouge1", "rouge2", "rougeL")
    score = RougeScorer(kinds, use_stemmer=stem).score
    found = [score(reference, hypothesis) for hypothesis, reference in zip(hypotheses, references)]
    return {kind: 100 * sum(scores[kind].fmeasure for scores in found) / len(found) for kind in kinds}


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str):
            raise ValueError(f"{name} are a list of texts, not one text: {texts[:40]!r}")
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses and {len(references)} references: give equal numbers")
    if not len(hypotheses):
        raise ValueError("there are no hypotheses to score: the split has no examples")
