"""Documents into rows: every token once and in order, with little padding."""

import numpy as np
import pytest

from transformer_zoo.data.packing import pack
from transformer_zoo.data.rows import pad

START, END = 1, 2


def corpus(sizes, seed=0):
    """Documents of these numbers of tokens; a token covers up to three bytes, the end token none."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(3, 1000, n).astype(np.int32), np.append(rng.integers(0, 4, n), 0)) for n in sizes]


CORPORA = {
    "one": corpus([5]),
    "exactly a row": corpus([15]),
    "one more than a row": corpus([16]),
    "far longer than a row": corpus([100]),
    "empty among others": corpus([0, 3, 0]),
    "short": corpus([3, 4, 2, 9, 1, 1, 12, 15, 14]),
    "mixed": corpus(np.random.default_rng(1).integers(0, 60, 80)),
}


@pytest.fixture(params=CORPORA)
def documents(request):
    return CORPORA[request.param]


def pieces(documents, length):
    """The expected rows: (inputs, targets) of every document, split where it is longer than a row."""
    for ids, _ in documents:
        whole = [START, *ids.tolist(), END]
        for first in range(0, len(whole) - 1, length):
            last = min(first + length, len(whole) - 1)
            yield tuple(whole[first:last]), tuple(whole[first + 1 : last + 1])


def packed(rows):
    """The contents of the rows: (inputs, targets) of every document of every row."""
    for tokens, targets, documents in zip(rows["tokens_BT"], rows["targets_BT"], rows["documents_BT"]):
        for number in range(1, documents.max() + 1):
            yield tuple(tokens[documents == number].tolist()), tuple(targets[documents == number].tolist())


@pytest.mark.parametrize("length", [1, 2, 7, 16, 64])
def test_every_document_is_there_once_and_whole(documents, length):
    rows = pack(documents, length, start=START, end=END)
    assert sorted(packed(rows)) == sorted(pieces(documents, length))


@pytest.mark.parametrize("length", [1, 7, 16])
@pytest.mark.parametrize("concat", [False, True])
def test_rows_are_well_formed(documents, length, concat):
    rows = pack(documents, length, start=START, end=END, concat=concat)
    valid = rows["valid_BT"]
    assert valid.any(axis=1).all(), "an empty row"
    np.testing.assert_array_equal(valid, rows["documents_BT"] > 0)
    for name in ("tokens_BT", "targets_BT", "positions_BT"):
        assert rows[name].dtype == np.int32 and rows[name].shape == (len(valid), length)
        assert not rows[name][~valid].any()
    for numbers, positions in zip(rows["documents_BT"], rows["positions_BT"]):
        real = numbers[numbers > 0]
        assert len(real) == (numbers > 0).sum() and (numbers[: len(real)] > 0).all(), "a hole in a row"
        assert (np.diff(real) >= 0).all() and set(real) == set(range(1, real.max() + 1))
        for number in set(real):
            np.testing.assert_array_equal(positions[numbers == number], np.arange((numbers == number).sum()))


@pytest.mark.parametrize("length", [1, 7, 16])
def test_concatenated_documents_are_one_text(documents, length):
    rows = pack(documents, length, start=START, end=END, concat=True)
    text = [token for ids, _ in documents for token in [*ids.tolist(), END]]
    targets = rows["targets_BT"][rows["valid_BT"]].tolist()
    assert targets == text
    assert rows["tokens_BT"][rows["valid_BT"]].tolist() == [START, *text[:-1]]
    assert len(rows["valid_BT"]) == -(-len(text) // length)
    assert rows["valid_BT"][:-1].all()


@pytest.mark.parametrize("concat", [False, True])
def test_bytes_are_counted_in_the_row_of_their_token(documents, concat):
    rows = pack(documents, 7, start=START, end=END, concat=concat)
    assert rows["bytes_B"].sum() == sum(counts.sum() for _, counts in documents)
    marked = [(ids, ids % 5 * 0 + 1) for ids, _ in documents]  # a byte for each token and none for the end
    rows = pack([(ids, np.append(ones, 0)) for ids, ones in marked], 7, start=START, end=END, concat=concat)
    np.testing.assert_array_equal(rows["bytes_B"], (rows["valid_BT"] & (rows["targets_BT"] != END)).sum(axis=1))


def test_little_room_is_wasted():
    rng = np.random.default_rng(0)
    for sizes in (rng.integers(1, 64, 500), rng.integers(20, 40, 500), rng.geometric(0.02, 500)):
        rows = pack(corpus(sizes), 64, start=START, end=END)
        fewest = -(-sum(n + 1 for n in sizes) // 64)
        assert len(rows["bytes_B"]) <= fewest * 11 / 9 + 1
    assert pack(corpus(rng.geometric(0.005, 400)), 64, start=START, end=END)["valid_BT"].mean() > 0.98
    # Two by two, and never one by one.
    assert len(pack(corpus([31] * 100), 64, start=START, end=END)["bytes_B"]) == 50


def test_each_document_has_its_own_start_and_end():
    documents = [(np.full(n, n), np.ones(n + 1, int)) for n in (1, 2, 3)]
    rows = pack(documents, 12, start=[11, 12, 13], end=[21, 22, 23])
    (numbers,) = rows["documents_BT"]
    of = lambda name: {tuple(rows[name][0, numbers == k].tolist()) for k in (1, 2, 3)}
    tokens, targets = of("tokens_BT"), of("targets_BT")
    assert tokens == {(11, 1), (12, 2, 2), (13, 3, 3, 3)} and targets == {(1, 21), (2, 2, 22), (3, 3, 3, 23)}


def test_packing_depends_on_nothing_else():
    first, second = (pack(CORPORA["mixed"], 16, start=START, end=END) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_nothing_gives_no_rows_and_padding_gives_empty_ones():
    rows = pack([], 8, start=START, end=END)
    assert rows["tokens_BT"].shape == (0, 8) and rows["bytes_B"].shape == (0,)
    full = pack(CORPORA["short"], 16, start=START, end=END)
    count = len(full["bytes_B"])
    padded = pad(full, count + 3)
    for name, values in padded.items():
        assert values.dtype == full[name].dtype and len(values) == count + 3
        np.testing.assert_array_equal(values[:count], full[name])
        assert not values[count:].any()
