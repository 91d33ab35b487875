"""How near what a model wrote is to what it should have written: BLEU and ROUGE.

All figures are percentages, as papers report them. Empty texts are texts: they score nothing.
"""

from collections.abc import Sequence


def bleu(hypotheses: Sequence[str], references: Sequence[str], *, lower_case: bool = False) -> float:
    """BLEU of a corpus (Papineni et al. 2002), as sacrebleu has it (Post 2018) with the settings of WMT: one reference
    each, the tokens of mteval-v13a, exponential smoothing.

    Args:
        hypotheses: what was written.
        references: what should have been.
        lower_case: capitals do not matter.

    Raises:
        ValueError: none of them, or more of one than of the other.
    """
    _check(hypotheses, references)
    from sacrebleu.metrics import BLEU

    # `force`: not to be warned of texts that look as if they had been cut into tokens before, as code does.
    return BLEU(lowercase=lower_case, force=True).corpus_score(list(hypotheses), [list(references)]).score


def rouge(hypotheses: Sequence[str], references: Sequence[str], *, stem: bool = True) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of texts (Lin 2004), each the mean of their F1, as rouge-score has it.

    It knows the letters a to z and digits; all else divides words.

    Args:
        hypotheses: what was written.
        references: what should have been.
        stem: the endings of words do not matter (Porter's stemmer), as in most papers on summaries.

    Returns:
        rouge1, rouge2, rougeL.

    Raises:
        ValueError: none of them, or more of one than of the other.
    """
    _check(hypotheses, references)
    from rouge_score.rouge_scorer import RougeScorer  # takes a second: it brings nltk, for the stemmer

    kinds = ("rouge1", "rouge2", "rougeL")
    score = RougeScorer(kinds, use_stemmer=stem).score
    found = [score(reference, hypothesis) for hypothesis, reference in zip(hypotheses, references)]
    return {kind: 100 * sum(scores[kind].fmeasure for scores in found) / len(found) for kind in kinds}


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str):
            raise ValueError(f"{name} are a list of texts, not one text: {texts[:40]!r}")
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses and {len(references)} references: there must be as many")
    if not len(hypotheses):
        raise ValueError("there are no hypotheses, and so no score: the split that they are made for has no example")
