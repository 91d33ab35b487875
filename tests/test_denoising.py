"""The pretraining objectives of encoder-decoders: which tokens are removed, and that source and target restore the
text."""

import collections
import functools
import itertools
import json
import random
import re

import numpy as np
import pytest
from test_corruption import texts
from test_pipeline import Documents, assert_equal, pipeline, take

from transformer_zoo.config import Data
from transformer_zoo.data import denoising, sentences
from transformer_zoo.data.corruption import predictions
from transformer_zoo.data.denoising import choose_gaps, divide, infill, longest_text, take_spans, taken
from transformer_zoo.data.seq2seq import PairMaker
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.objectives import GapSentences, MixtureOfDenoisers, PrefixLM, SpanCorruption, TextInfilling

START = 9  # no token that a tokenizer would propose

OBJECTIVES = [
    SpanCorruption(start_id=START),
    SpanCorruption(start_id=START, density=0.5, mean_span_length=8.0),
    PrefixLM(start_id=START),
    PrefixLM(start_id=START, target_length=11),
    MixtureOfDenoisers(start_id=START, modes=("R", "S", "X")),
    TextInfilling(start_id=START),
    GapSentences(start_id=START),
    GapSentences(start_id=START, selection="seq-uniq", ratio=0.5, mask="~"),
]
names = lambda objective: f"{objective.name}-{OBJECTIVES.index(objective)}"


@pytest.fixture(scope="module")
def source() -> Documents:
    return Documents([*texts(8), "", "x", "one two"])


@pytest.fixture(scope="module")
def t5() -> Tokenizer:
    return Tokenizer.train(texts(26, seed=1), 600, kind="t5")


@pytest.fixture(scope="module")
def bart() -> Tokenizer:
    return Tokenizer.train(texts(26, seed=1), 500, kind="roberta")


def made_for(objective, t5: Tokenizer, bart: Tokenizer) -> Tokenizer:
    return bart if objective.name in ("text-infilling", "gap-sentences") else t5


def rows_of(objective, tokenizer, documents, length=48, packing="documents", seed=0) -> dict:
    make = objective.rows(tokenizer, Data(length=length, packing=packing))
    return make(list(documents), np.random.default_rng(seed))


def in_order(monkeypatch, *args, **how) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs of source and target in order, before they are packed into rows."""
    with monkeypatch.context() as patch:
        patch.setattr(PairMaker, "pack", lambda self, pairs: pairs)
        return rows_of(*args, **how)


def in_rows(rows) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs in the rows. Asserts that the decoder reads each target shifted by one, after the start token."""
    found = []
    for row in range(len(rows["source_BS"])):
        numbers, others = rows["source_documents_BS"][row], rows["target_documents_BT"][row]
        assert set(numbers) - {0} == set(others) - {0} == set(range(1, numbers.max() + 1))
        for number in range(1, numbers.max() + 1):
            written = rows["targets_BT"][row][others == number]
            assert rows["target_BT"][row][others == number].tolist() == [START, *written[:-1]]
            found.append((rows["source_BS"][row][numbers == number], written))
    return found


def spelt(tokens) -> str:
    """Tokens as characters, to compare and to search."""
    return "".join(map(chr, tokens))


def unframed(tokens, tokenizer) -> list[int]:
    """The tokens without the special tokens around them."""
    tokens = tokens.tolist()
    assert tokens[-1] == tokenizer.eos_id
    return tokens[tokens[0] == tokenizer.bos_id : -1]


def restored(objective, pair, tokenizer) -> list[int]:
    """The text that a pair was made from."""
    source, target = (unframed(side, tokenizer) for side in pair)
    if objective.name == "text-infilling":
        missing = collections.Counter(target)
        missing.subtract(token for token in source if token != tokenizer.mask_id)
        assert min(missing.values()) >= 0 and missing.total() == predictions(len(target), objective.rate)
        assert len(source) <= len(target)
        return target
    if objective.name == "gap-sentences":
        gap = tokenizer.id_of(objective.mask)
        gap = tokenizer.mask_id if gap is None else gap
        return source, target, gap  # which part of the target is which sentence, the text must say
    if objective.name == "mixture-of-denoisers":
        mode, *source = source
        assert mode in {tokenizer.id_of(mode) for mode in objective.modes}
    sentinels = [i for i in tokenizer.sentinel_ids if i in target]
    assert sentinels == list(tokenizer.sentinel_ids[: len(sentinels)])
    assert [token for token in source if token in tokenizer.sentinel_ids] == sentinels
    if not sentinels:
        return source + target
    assert target[0] == sentinels[0] and [token for token in target if token in sentinels] == sentinels
    ends = [target.index(sentinel) for sentinel in sentinels[1:]] + [len(target)]
    spans = {target[start]: target[start + 1 : end] for start, end in zip([0, *ends], ends)}
    assert all(spans.values())
    return [part for token in source for part in spans.get(token, [token])]


def whole(objective, documents, tokenizer, packing) -> list[int]:
    """All tokens of the pairs."""
    parts = [ids for document in documents if (ids := tokenizer.encode(document["text"]).ids.tolist())]
    between = [tokenizer.eos_id] if packing == "concat" else []
    return list(itertools.chain(*([*part, *between] for part in parts)))[: -1 if between else None]


@pytest.mark.parametrize("packing", ["documents", "concat"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=names)
def test_sources_with_their_targets_are_the_text(objective, packing, source, t5, bart, monkeypatch):
    """Every token of every document occurs once, in order; the rows hold the same pairs."""
    tokenizer = made_for(objective, t5, bart)
    if objective.name == "gap-sentences" and packing == "concat":
        return
    expected = whole(objective, source, tokenizer, packing)
    for length in (12, 17, 48, 128, 300):
        pairs = in_order(monkeypatch, objective, tokenizer, source, length=length, packing=packing)
        texts_ = [restored(objective, pair, tokenizer) for pair in pairs]
        if objective.name == "gap-sentences":
            at, text = 0, spelt(expected)
            for read, written, gap in texts_:
                size = len(read) - read.count(gap) + len(written)
                # The text is the source with something in each gap, and these together are the target.
                gaps = iter(range(read.count(gap)))
                parts = [f"(?P<g{next(gaps)}>.+?)" if token == gap else re.escape(chr(token)) for token in read]
                target = "".join(f"(?P=g{number})" for number in range(read.count(gap)))
                pattern, given = "".join(parts) + "\0" + target, text[at : at + size] + "\0" + spelt(written)
                assert re.fullmatch(pattern, given, re.DOTALL)
                at += size
            assert at == len(text)
        else:
            assert list(itertools.chain(*texts_)) == expected
        rows = rows_of(objective, tokenizer, source, length=length, packing=packing)
        pairs, found = ([(spelt(a), spelt(b)) for a, b in each] for each in (pairs, in_rows(rows)))
        assert sorted(pairs) == sorted(found)
        shapes = objective.shapes(len(rows["source_BS"]), length)
        assert {n: (x.shape, x.dtype) for n, x in rows.items()} == {n: (x.shape, x.dtype) for n, x in shapes.items()}


# ---- spans ----------------------------------------------------------------------------------------------------------


def published(tokens: int, density: float, span: float) -> tuple[int, int]:
    """Lengths of source and target as the code published with Raffel et al. 2020 counts them."""
    hidden = int(round(tokens * density))
    spans = int(round(hidden / span))
    return tokens - hidden + spans + 1, hidden + spans + 1


def test_lengths_are_those_of_the_published_formula():
    """For 512 tokens the well-known 568 and 114; for others, compared with a search."""
    assert longest_text(512, float("inf"), 0.15, 3.0, 10**6) == 568 and SpanCorruption().target_length_for(512) == 114
    draw = random.Random(0)
    for _ in range(300):
        length, density, span = draw.randrange(60, 700), draw.uniform(0.1, 0.5), draw.uniform(2, 8)
        density = draw.choice((density, 0.15, 0.5))
        tokens = length
        while published(tokens + 1, density, span)[0] <= length:
            tokens += 1
        read, written = published(tokens, density, span)
        if density == 0.5 and written > read:
            tokens, written = tokens - 1, written - 1
        assert read == length  # nothing is wasted
        objective = SpanCorruption(density=density, mean_span_length=span)
        assert objective.target_length_for(length) == written
        assert longest_text(length, written, density, span, 10**6) == tokens


def test_a_target_that_is_shorter_bounds_the_text():
    draw = random.Random(1)
    for _ in range(200):
        length, target, density, span = draw.randrange(3, 90), draw.randrange(3, 60), draw.random(), draw.uniform(1, 9)
        sentinels = draw.randrange(1, 12)
        size = longest_text(length, target, density, span, sentinels)
        sizes = np.arange(1, 400)
        hidden, spans = taken(sizes, density, span)
        fits = (sizes - hidden + spans + 1 <= length) & (hidden + spans + 1 <= target) & (spans <= sentinels)
        assert fits[:size].all() and not fits[size:].any()


@pytest.mark.parametrize("length", range(5, 200, 13))
def test_both_rows_are_full(t5, length, monkeypatch):
    """All rows except those of the remainder at the end."""
    objective = SpanCorruption(start_id=START)
    rows = rows_of(objective, t5, Documents(texts(12)), length=length, packing="concat")
    assert len(rows["source_BS"]) > 10
    for name in ("valid_BS", "valid_BT"):
        assert (~rows[name].all(axis=1)).sum() <= 1
    for density, span in ((0.3, 2.0), (0.45, 3.0), (0.15, 10.0)):
        objective = SpanCorruption(start_id=START, density=density, mean_span_length=span)
        rows = rows_of(objective, t5, Documents(texts(6)), length=length, packing="concat")
        assert (~rows["valid_BS"].all(axis=1)).sum() <= 1 and (~rows["valid_BT"].all(axis=1)).sum() <= 1


def test_spans_stand_anywhere_and_are_as_long_as_they_should():
    """All tokens are equally likely to be removed, except that the first stays and the last is removed."""
    rng, sentinels = np.random.default_rng(0), np.arange(1000, 1400)
    for size, density, span in ((568, 0.15, 3.0), (200, 0.5, 3.0), (300, 0.15, 8.0), (90, 0.5, 64.0)):
        hits, lengths, draws = np.zeros(size), [], 400
        for _ in range(draws):
            read, written = take_spans(np.arange(size), rng, density, span, sentinels)
            hidden = written[written < 1000]
            hits[hidden] += 1
            lengths += np.diff([*np.flatnonzero(written >= 1000), len(written)]).tolist()
            assert (
                len(hidden) == round(size * density) and len(read) + len(written) == size + 2 * (written >= 1000).sum()
            )
        lengths = np.array(lengths) - 1
        assert lengths.min() >= 1 and abs(lengths.mean() / span - 1) < 0.5 / (size * density / span)
        assert hits[0] == 0 and hits[-1] == draws
        if span <= 8:
            middle = hits[size // 5 : -size // 5] / draws
            assert abs(middle.mean() - density) < 0.03 and middle.std() < 3 * np.sqrt(density / draws)
            if size == 568:  # geometric, nearly: of lengths with the mean 3, a third is 1
                assert abs((lengths == 1).mean() - 1 / 3) < 0.02 and abs((lengths == 2).mean() - 2 / 9) < 0.02


def test_all_divisions_are_as_likely():
    rng = np.random.default_rng(0)
    counts = collections.Counter(tuple(divide(6, 3, rng).tolist()) for _ in range(5000))
    assert len(counts) == 10 and all(sum(sizes) == 6 and min(sizes) >= 1 for sizes in counts)
    assert max(abs(count - 500) for count in counts.values()) < 4 * np.sqrt(500)
    assert divide(0, 1, rng).tolist() == [0] and divide(1, 1, rng).tolist() == [1]
    assert divide(5, 5, rng).tolist() == [1] * 5


def test_tiny_texts_have_a_span(t5):
    for size in range(1, 30):
        for density, span in ((0.01, 1.0), (0.15, 3.0), (0.5, 64.0), (0.99, 1.0)):
            hidden, spans = taken(size, density, span)
            assert 1 <= spans <= hidden <= max(1, size - 1) and spans <= max(1, size - hidden)


def test_too_few_sentinels(t5, bart):
    with pytest.raises(ValueError, match="has room for 114 spans, and the tokenizer has 100 sentinels"):
        SpanCorruption(start_id=START).rows(t5, Data(length=2048))
    SpanCorruption(start_id=START, mean_span_length=4.0).rows(t5, Data(length=2048))
    for objective in (SpanCorruption(start_id=START), MixtureOfDenoisers(start_id=START)):
        with pytest.raises(ValueError, match="sentinels.*vocabulary.kind=t5"):
            objective.rows(bart, Data(length=64))


# ---- ends, and mixtures ---------------------------------------------------------------------------------------------


def test_texts_are_cut_anywhere_and_fill_a_row(t5, monkeypatch):
    """The target's share is uniform; in whole chunks one side fills its row."""
    pairs = in_order(monkeypatch, PrefixLM(start_id=START), t5, Documents(texts(60)), length=64, packing="concat")[:-1]
    sizes = np.array([(len(source), len(target)) for source, target in pairs])
    assert len(sizes) > 400 and (sizes.max(axis=1) == 64).all()
    share = (sizes[:, 1] - 1) / (sizes.sum(axis=1) - 2)
    counts = np.histogram(share, 4, (0, 1))[0]
    assert np.abs(counts - len(sizes) / 4).max() < 4 * np.sqrt(len(sizes) * 3 / 16)


def test_every_denoiser_has_its_share(t5, monkeypatch):
    """A seventh each, with the mode, the density and the spans of the paper's table."""
    objective = MixtureOfDenoisers(start_id=START, modes=("R", "S", "X"))
    documents = Documents([" ".join(texts(200))])
    pairs = in_order(monkeypatch, objective, t5, documents, length=256)[:-1]
    modes = {t5.id_of(mode): mode for mode in "RSX"}
    found = collections.defaultdict(list)
    for source, target in pairs:
        written = unframed(target, t5)
        spans = sum(token in t5.sentinel_ids for token in written)
        text = len(source) - 2 + len(written) - 2 * spans
        hidden = len(written) - spans
        span = spans and min((3, 8, 64), key=lambda span: abs(hidden / spans / span - 1))
        how = (round(20 * hidden / text) / 20, span) if spans else None
        found[modes[source[0]], how].append((hidden / text, len(source), len(target)))
    expected = {("R", (0.15, 3)), ("R", (0.15, 8)), ("S", None)}
    expected |= {("X", (0.5, 3)), ("X", (0.5, 8)), ("X", (0.15, 64)), ("X", (0.5, 64))}
    assert found.keys() == expected
    total = len(pairs)
    for values in found.values():
        assert abs(len(values) - total / 7) < 4 * np.sqrt(total * 6 / 49)
    ends = np.array([share for share, *_ in found["S", None]])
    assert abs(ends.mean() - 0.25) < 0.05 and ends.max() <= 0.52 and np.ptp(ends) > 0.4
    sizes = np.array([sizes for values in found.values() for _, *sizes in values])
    assert (sizes.max(axis=1) == 256).all()  # a row of sources or of targets is full


def test_modes_are_left_out_where_the_tokenizer_has_none(t5, monkeypatch):
    objective = MixtureOfDenoisers(start_id=START, sequential_share=1.0, regular=(), extreme=())
    pairs = in_order(monkeypatch, objective, t5, Documents(texts(3)), length=64)
    together = [[*source[:-1].tolist(), *target[:-1].tolist()] for source, target in pairs]
    assert list(itertools.chain(*together)) == whole(objective, Documents(texts(3)), t5, "documents")


def test_a_mixture_does_with_the_sentinels_there_are(t5, monkeypatch):
    """Spans of 3 in half of 512 tokens would be more than a hundred."""
    objective = MixtureOfDenoisers(start_id=START, regular=(), extreme=((3.0, 0.5),), sequential_share=0.0)
    for source, target in in_order(monkeypatch, objective, t5, Documents([" ".join(texts(30))]), length=512)[:-1]:
        assert 400 < len(source) < 403 and 400 < len(target) < 403 and (target == t5.sentinel_ids[99]).sum() == 1


# ---- masks to be filled ---------------------------------------------------------------------------------------------


def test_infilling_masks_what_it_should():
    """30 % of the tokens, in spans of Poisson lengths; the others stay in order."""
    rng, size = np.random.default_rng(0), 3000
    masks = nothing = single = 0
    for _ in range(30):
        read = infill(np.arange(size), rng, 0.3, 3.0, -1)
        kept = read[read >= 0]
        assert (np.diff(kept) > 0).all() and len(kept) == size - 900
        masks += (read < 0).sum()
        # Between tokens that stay: how many masks, and how many tokens are missing.
        places = np.flatnonzero(read >= 0)
        between, missing = np.diff(places) - 1, np.diff(kept) - 1
        assert (missing[between == 0] == 0).all()
        nothing += ((between == 1) & (missing == 0)).sum()
        single += (between == 1).sum()
    assert abs(30 * 900 / masks - 3) < 0.1  # tokens a mask
    assert abs(nothing / single - np.exp(-3)) < 0.012


def test_lengths_of_spans_are_drawn_from_a_poisson_distribution():
    rng, lengths = np.random.default_rng(1), []
    for _ in range(400):
        read = infill(np.arange(100), rng, 0.3, 3.0, -1)
        places = np.flatnonzero(read >= 0)
        alone = np.diff(places) == 2
        lengths += (np.diff(read[places])[alone] - 1).tolist()
    found = np.bincount(lengths, minlength=8)[:8] / len(lengths)
    law = np.exp(-3) * 3.0 ** np.arange(8) / np.cumprod([1, *range(1, 8)])
    assert len(lengths) > 1500 and np.abs(found - law).max() < 0.05


def test_infilling_of_tiny_texts():
    rng = np.random.default_rng(0)
    for size in range(1, 12):
        for _ in range(100):
            read = infill(np.arange(size), rng, 0.3, 0.2, -1)
            hidden = predictions(size, 0.3)
            assert len(read) <= size and (read >= 0).sum() == size - hidden and (read < 0).any()


def test_sentences_stand_in_any_order(bart, monkeypatch):
    """All orders are equally likely, and only the order changes."""
    parts = ["Alpha one.", " Beta two two.", " Gamma.\n"]
    tokens = [bart.encode(part).ids for part in parts]
    orders = {spelt(np.concatenate(order)): 0 for order in itertools.permutations(tokens)}
    monkeypatch.setattr(denoising, "infill", lambda text, *_: text)
    objective = TextInfilling(start_id=START)
    pairs = in_order(monkeypatch, objective, bart, Documents(["".join(parts)] * 1200), length=64)
    for source, target in pairs:
        orders[spelt(unframed(source, bart))] += 1
        assert source[0] == target[0] == bart.bos_id
        assert bart.decode(target) == "".join(parts)
    assert len(orders) == 6 and max(abs(count - 200) for count in orders.values()) < 4 * np.sqrt(200)
    still = TextInfilling(start_id=START, permute_sentences=False)
    for source, target in in_order(monkeypatch, still, bart, Documents(["".join(parts)]), length=64):
        assert source.tolist() == target.tolist()


def test_a_sentence_that_a_row_ends_in_is_cut(bart, monkeypatch):
    """If a sentence is split over two rows, its parts are sentences of their rows."""
    monkeypatch.setattr(denoising, "infill", lambda text, *_: text)
    text = texts(1)[0]
    borders = {first for first, _ in sentences.spans_of(text, bart.encode(text), 1000)}
    objective, at = TextInfilling(start_id=START), 0
    for source, target in in_order(monkeypatch, objective, bart, Documents([text]), length=40):
        read, written = unframed(source, bart), unframed(target, bart)
        cuts = [i for i in range(1, len(written)) if at + i in borders]
        parts = [written[i:j] for i, j in zip([0, *cuts], [*cuts, len(written)])]
        assert sorted(read) == sorted(written) and all(spelt(part) in spelt(read) for part in parts)
        at += len(written)


# ---- sentences to be written ----------------------------------------------------------------------------------------


def by_hand(sentences: list[str], count: int, selection: str) -> list[int]:
    """The sentences whose ROUGE-1 F1 with all others is highest; the first of equals."""

    def words(chosen: list[int]) -> collections.Counter:
        found = collections.Counter(word for i in chosen for word in sentences[i].lower().strip(".").split())
        return collections.Counter(dict.fromkeys(found, 1)) if selection.endswith("uniq") else found

    def f1(chosen: list[int]) -> float:
        one, other = words(chosen), words([i for i in range(len(sentences)) if i not in chosen])
        common = (one & other).total()
        precision, recall = common / one.total(), common / max(other.total(), 1)
        return 2 * precision * recall / (precision + recall) if common else 0.0

    chosen: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(sentences)) if i not in chosen]
        before = chosen if selection.startswith("seq") else []
        scores = [round(f1([*before, i]), 12) for i in left]
        chosen.append(left[scores.index(max(scores))])
    return sorted(chosen)


@pytest.mark.parametrize("selection", ["ind-orig", "ind-uniq", "seq-orig", "seq-uniq"])
def test_gaps_are_the_sentences_of_the_highest_rouge(selection):
    draw = random.Random(0)
    for _ in range(60):
        words = [chr(97 + i) * 2 for i in range(draw.randrange(3, 12))]
        found = [" ".join(draw.choices(words, k=draw.randrange(1, 9))).capitalize() + "." for _ in range(9)]
        count = draw.randrange(1, 6)
        assert choose_gaps(found, [1] * 9, count, 99, selection) == by_hand(found, count, selection)


def test_selections_differ_as_they_should():
    """Repeated words count repeatedly, or once; the sequential selection avoids what is selected already."""
    found = ["A a a a.", "A b c.", "B a a c.", "D a a."]
    assert choose_gaps(found, [1] * 4, 1, 9, "ind-orig") == [0] and choose_gaps(found, [1] * 4, 1, 9, "ind-uniq") == [1]
    found = ["One two three.", "One two three.", "Four five.", "One two three four five."]
    assert choose_gaps(found, [1] * 4, 2, 9, "ind-orig") == [0, 3]
    assert choose_gaps(["", "...", "a"], [1, 1, 1], 2, 9) == [0, 1]  # no words, nothing in common


def test_gaps_that_a_target_has_no_room_for_are_passed_over():
    found = ["a b c d.", "a b c.", "c d.", "a."]
    assert choose_gaps(found, [4, 3, 2, 1], 2, 7) == [0, 1]
    assert choose_gaps(found, [4, 3, 2, 1], 2, 6) == [0, 2]
    assert choose_gaps(found, [4, 3, 2, 1], 3, 3) == [1]
    assert choose_gaps(found, [4, 3, 2, 1], 1, 0) == []


def test_a_ratio_of_the_sentences_is_taken(bart, monkeypatch):
    """Whole sentences, their number by the ratio of those in a row, unless the target is full."""
    objective = GapSentences(start_id=START, target_length=256)
    gaps = 0
    for source, target in in_order(monkeypatch, objective, bart, Documents(texts(30)), length=256):
        kept, taken_ = (bart.decode(side) for side in (source, target))
        count = (source == bart.mask_id).sum()
        total = count + len(sentences.split(kept))
        assert count == len(sentences.split(taken_))
        gaps += count - max(1, round(0.3 * total))
        assert len(source) <= 256 and len(target) <= 256
    assert abs(gaps) < 12  # where gaps stand side by side, or at a beginning, text says less of where sentences end


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES, ids=names)
def test_texts_that_are_hardly_any(objective, t5, bart):
    """An empty text gives no row; a text of one token is all target."""
    tokenizer = made_for(objective, t5, bart)
    for text in ("", "x", "xy"):
        rows = rows_of(objective, tokenizer, [{"text": text}], length=16)
        count = len(tokenizer.encode(text))
        assert len(rows["source_BS"]) == (count > 0) and count < 3
        if count == 1:
            ((_, target),) = in_rows(rows)
            assert tokenizer.encode(text).ids[0] in target
    assert len(rows_of(objective, tokenizer, [], length=16)["source_BS"]) == 0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("objective", OBJECTIVES[4:7], ids=names)
def test_the_same_with_any_number_of_workers_and_resumed(source, t5, bart, objective, workers):
    """With none and one, each of which goes on where the other was; test_pipeline.py has several."""
    tokenizer = made_for(objective, t5, bart)
    if workers and objective.name != "mixture-of-denoisers":
        return  # their functions are drawn from in the same way, and workers take seconds to start
    settings = {"objective": objective, "epochs": 2, "batch_size": 8}
    every = take(pipeline(source, tokenizer, **settings))
    assert len(every) > 8
    batches = pipeline(source, tokenizer, workers=workers, **settings)
    first = [next(batches) for _ in range(4)]
    state = json.loads(json.dumps(batches.get_state()))
    assert_equal([*first, *take(batches)], every)
    batches = pipeline(source, tokenizer, **settings)
    batches.set_state(state)
    assert_equal(take(batches), every[4:])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=names)
def test_seeds_and_epochs_differ_and_repeat(objective, source, t5, bart):
    tokenizer = made_for(objective, t5, bart)
    run = functools.partial(pipeline, source, tokenizer, objective=objective, batch_size=1, shuffle=False)
    first, again, other = (take(run(epochs=2, seed=seed)) for seed in (3, 3, 4))
    assert_equal(first, again)
    half = len(take(run(epochs=1, seed=3)))
    rows = [[row["source_BS"].tobytes() for row in part] for part in (first[:half], first[half:], other)]
    if objective.name == "gap-sentences":
        assert sorted(rows[0]) == sorted(rows[1])  # the text says what is taken
    else:
        for part in rows[1:]:
            assert len(set(rows[0]) & set(part)) < 0.1 * half


def test_a_position_among_other_rows_is_refused(source, t5):
    state = pipeline(source, t5, objective=SpanCorruption(start_id=START)).get_state()
    state = json.loads(json.dumps(state))
    pipeline(source, t5, objective=SpanCorruption(start_id=START)).set_state(state)
    for message, objective in {
        r"denoisers: \[\[0.15, 3.0, None\]\] then, \[\[0.2, 3.0, None\]\] now": SpanCorruption(
            start_id=START, density=0.2
        ),
        "start: 9 then, 2 now": SpanCorruption(start_id=2),
        "target_length: .* then, 64 now": SpanCorruption(start_id=START, target_length=64),
    }.items():
        with pytest.raises(ValueError, match=message):
            pipeline(source, t5, objective=objective).set_state(state)


def test_what_cannot_work_is_refused(t5, bart):
    plain = Tokenizer.train(texts(3), 300)
    wordpiece = Tokenizer.train(texts(3), 300, kind="wordpiece")
    refused = [
        ("has no mask: .*vocabulary.kind=roberta", TextInfilling(start_id=START), plain, {}),
        ("neither '<mask_1>' nor a mask", GapSentences(start_id=START), t5, {}),
        ("need data.packing=documents", GapSentences(start_id=START), bart, {"packing": "concat"}),
        ("no end-of-text token", TextInfilling(start_id=START), wordpiece, {}),
        ("start_id is not known", SpanCorruption(), t5, {}),
        ("rows of 64 and 1 tokens leave no room", SpanCorruption(start_id=START, target_length=1), t5, {}),
        ("rows of 2 and 2 tokens leave no room", MixtureOfDenoisers(start_id=START), t5, {"length": 2}),
    ]
    for message, objective, tokenizer, data in refused:
        with pytest.raises(ValueError, match=message):
            objective.rows(tokenizer, Data(**{"length": 64} | data))
    for objective in (TextInfilling(start_id=START), GapSentences(start_id=START, target_length=2)):
        with pytest.raises(ValueError, match="leave no room for text within its frame"):
            objective.rows(bart, Data(length=2))
    for kind, how in (
        (SpanCorruption, {"density": 0.0}),
        (SpanCorruption, {"mean_span_length": 0.5}),
        (SpanCorruption, {"target_length": 0}),
        (PrefixLM, {"label_smoothing": 1.0}),
        (PrefixLM, {"logits_chunks": 0}),
        (MixtureOfDenoisers, {"extreme": ((3.0, 1.0),)}),
        (MixtureOfDenoisers, {"sequential": 0.6}),
        (MixtureOfDenoisers, {"sequential_share": 1.0}),
        (MixtureOfDenoisers, {"regular": (), "extreme": ()}),
        (TextInfilling, {"rate": 1.0}),
        (TextInfilling, {"mean_span_length": 0.0}),
        (GapSentences, {"ratio": 0.0}),
        (GapSentences, {"selection": "lead"}),
    ):
        with pytest.raises(ValueError, match=kind.__name__):
            kind(**how)
