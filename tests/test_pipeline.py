"""Batches: the same rows in the same order, for any number of workers and any point of resumption."""

import collections
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from transformer_zoo.config import Data
from transformer_zoo.data.corruption import MaskedRows
from transformer_zoo.data.denoising import DenoisedRows, GapRows, InfilledRows
from transformer_zoo.data.labelled import AnswerRows, SequenceRows, TokenRows
from transformer_zoo.data.packing import PackedTexts
from transformer_zoo.data.pipeline import Pipeline
from transformer_zoo.data.sentences import PairedRows
from transformer_zoo.data.seq2seq import PairRows
from transformer_zoo.data.tokenizers import Tokenizer

SENTENCE = "the naïve code of an encoder, a decoder and both; 文字 and 😀 for x in range(10): print(x)\n"
WORDS = SENTENCE.split(" ")


def texts(count, seed=0, longest=60):
    rng = random.Random(seed)
    return [f"{i}: " + " ".join(rng.choices(WORDS, k=rng.randrange(longest))) for i in range(count)]


class Documents(list):
    """A source in memory. A class of this module, so that workers can unpickle it."""

    def __init__(self, items):
        super().__init__({"text": item} if isinstance(item, str) else item for item in items)


class Fails(Documents):
    """A source with one document that cannot be read."""

    def __getitem__(self, index):
        if index == 17:
            raise ValueError("bad.jsonl, line 18: not JSON")
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(texts(20), 300)


@pytest.fixture(scope="module")
def source():
    return Documents(texts(50))


def pipeline(source, tokenizer, *, objective=None, length=32, packing="documents", **settings):
    if objective is None:
        from transformer_zoo.objectives import CausalLM  # here: workers import this module, and need no models

        objective = CausalLM()
    defaults = {"batch_size": 4, "seed": 3, "group": 8}
    make_rows = objective.rows(tokenizer, Data(length=length, packing=packing))
    return Pipeline(source, make_rows, **defaults | settings)


def take(batches, count=None):
    """Some batches (None: all); stops the workers."""
    taken = []
    for batch in batches:
        taken.append(batch)
        if len(taken) == count:
            break
    batches.close()
    return taken


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def targets(batches):
    """All targets, with the number of their occurrences."""
    return collections.Counter(token for batch in batches for token in batch["targets_BT"][batch["valid_BT"]].tolist())


def expected(source, tokenizer):
    ids = [
        [*tokenizer.encode(document["text"]).ids.tolist(), tokenizer.eos_id] for document in source if document["text"]
    ]
    return collections.Counter(token for document in ids for token in document)


@pytest.mark.parametrize("packing", ["documents", "concat"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("length", "batch_size", "group"), [(32, 4, 8), (7, 3, 50), (500, 64, 7), (2, 1, 1)])
def test_an_epoch_holds_every_token_and_byte_once(source, tokenizer, packing, shuffle, length, batch_size, group):
    settings = {"packing": packing, "shuffle": shuffle, "length": length, "batch_size": batch_size, "group": group}
    batches = take(pipeline(source, tokenizer, epochs=1, **settings))
    assert targets(batches) == expected(source, tokenizer)
    assert sum(batch["bytes_B"].sum() for batch in batches) == sum(len(d["text"].encode()) for d in source)
    for batch in batches:
        assert batch["tokens_BT"].shape == (batch_size, length)
    assert all(batch["valid_BT"].any(axis=1).all() for batch in batches[:-1])
    twice = take(pipeline(source, tokenizer, epochs=2, **settings))
    assert targets(twice) == expected(Documents([*source, *source]), tokenizer)


def test_positions_of_older_versions_are_read(source, tokenizer):
    """A saved position names the maker of its rows and all settings, under names that do not change."""
    settings = {
        "rows": "pack_texts", "tokenizer": tokenizer.fingerprint, "length": 32, "packing": "documents",
        "shuffle": True, "seed": 3, "documents": 50, "group": 8,
    }  # fmt: skip
    batches = pipeline(source, tokenizer)
    assert batches.get_state() == {"group": 0, "row": 0, "settings": settings}
    batches.set_state({"group": 2, "row": 1, "settings": settings})
    assert batches.get_state() == {"group": 2, "row": 1, "settings": settings}
    names = [kind.name for kind in (PackedTexts, MaskedRows, PairedRows, SequenceRows, TokenRows, AnswerRows, PairRows)]
    names += [kind.name for kind in (DenoisedRows, InfilledRows, GapRows)]
    assert names == [
        "pack_texts", "masked_rows", "paired_rows", "sequence_rows", "token_rows", "answer_rows", "pair_rows",
        "denoised_rows", "infilled_rows", "gap_rows",
    ]  # fmt: skip


def test_documents_can_be_read_back_from_the_rows(source, tokenizer):
    found = []
    for batch in take(pipeline(source, tokenizer, length=1024, epochs=1)):
        for tokens, numbers in zip(batch["tokens_BT"], batch["documents_BT"]):
            for number in range(1, numbers.max() + 1):
                ids = tokens[numbers == number]
                assert ids[0] == tokenizer.bos_id
                found.append(tokenizer.decode(ids))
    assert sorted(found) == sorted(document["text"] for document in source)


def test_unshuffled_concat_is_the_source_in_order(source, tokenizer):
    batches = take(pipeline(source, tokenizer, packing="concat", shuffle=False, epochs=1, group=50))
    ids = [token for batch in batches for token in batch["targets_BT"][batch["valid_BT"]].tolist()]
    assert tokenizer.decode(ids, special=True) == "".join(document["text"] + "<|endoftext|>" for document in source)


def test_epochs_and_seeds_differ_and_repeat(source, tokenizer):
    def order(count, **settings):
        batches = pipeline(source, tokenizer, batch_size=1, length=2048, group=1, **settings)
        return [tokenizer.decode(batch["tokens_BT"][batch["valid_BT"]]) for batch in take(batches, count)]

    first, second = order(100)[:50], order(100)[50:]
    assert sorted(first) == sorted(second) == sorted(document["text"] for document in source)
    assert first != second
    assert order(100) == [*first, *second]
    other = order(50, seed=4)
    assert other != first and other != second  # the next seed is not the next epoch
    assert order(50, shuffle=False) == [document["text"] for document in source]


@pytest.mark.parametrize("packing", ["documents", "concat"])
def test_order_does_not_depend_on_the_number_of_processes(source, tokenizer, packing):
    settings = {"packing": packing, "batch_size": 8, "epochs": 2}
    whole = take(pipeline(source, tokenizer, **settings))
    assert len(whole) > 5
    for count in (2, 4, 8):
        shares = [
            take(pipeline(source, tokenizer, process_index=i, process_count=count, **settings)) for i in range(count)
        ]
        joined = [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in zip(*shares)]
        assert_equal(joined, whole)


def test_order_does_not_depend_on_the_number_of_workers(source, tokenizer):
    settings = {"epochs": 2, "batch_size": 8, "process_index": 1, "process_count": 2}
    alone = pipeline(source, tokenizer, **settings)
    whole = take(alone)
    batches = pipeline(source, tokenizer, workers=1, **settings)
    first = [next(batches) for _ in range(4)]
    state = json.loads(json.dumps(batches.get_state()))
    assert_equal([*first, *take(batches)], whole)
    # Saved with one worker, and restored with two, and without.
    for workers in (2, 0):
        batches = pipeline(source, tokenizer, workers=workers, **settings)
        batches.set_state(state)
        assert_equal(take(batches), whole[4:])


@pytest.mark.parametrize("packing", ["documents", "concat"])
def test_state_is_exact_wherever_it_is_taken(source, tokenizer, packing):
    rng = random.Random(0)
    reference = take(pipeline(source, tokenizer, packing=packing), 120)
    batches, states = pipeline(source, tokenizer, packing=packing), []
    for batch in reference:
        states.append(json.loads(json.dumps(batches.get_state())))
        assert_equal([next(batches)], [batch])
    batches.close()
    assert len({json.dumps(state) for state in states}) == len(states)
    for place in [0, 119, *rng.sample(range(120), 12)]:
        fresh = pipeline(source, tokenizer, packing=packing)
        fresh.set_state(states[place])
        assert fresh.get_state() == states[place]
        assert_equal(take(fresh, min(6, 120 - place)), reference[place : place + 6])


def test_state_survives_other_batches_processes_and_epochs(source, tokenizer):
    whole = take(pipeline(source, tokenizer, epochs=2, batch_size=2))
    batches = pipeline(source, tokenizer, epochs=1, batch_size=4)
    for _ in range(3):
        next(batches)
    state = batches.get_state()
    batches.close()
    resumed = pipeline(source, tokenizer, epochs=2, batch_size=2)
    resumed.set_state(state)
    assert_equal(take(resumed), whole[6:])
    second = pipeline(source, tokenizer, epochs=2, batch_size=4, process_index=1, process_count=2)
    second.set_state(state)
    assert_equal(take(second, 3), whole[7:12:2])


def test_the_end_is_a_position_too(source, tokenizer):
    batches = pipeline(source, tokenizer, epochs=1)
    count = len(list(batches))
    assert next(batches, None) is None
    end = batches.get_state()
    batches.close()
    assert batches.epoch == 1
    again = pipeline(source, tokenizer, epochs=1)
    again.set_state(end)
    assert next(again, None) is None
    longer = pipeline(source, tokenizer, epochs=2)
    longer.set_state(end)
    assert len(take(longer)) >= count - 1
    assert longer.epoch == 2


def test_closing_keeps_the_position(source, tokenizer):
    reference = take(pipeline(source, tokenizer), 5)
    batches = pipeline(source, tokenizer)
    found = []
    for _ in range(5):
        found.append(next(batches))
        batches.close()
    assert_equal(found, reference)


def test_state_of_other_rows_is_refused(source, tokenizer):
    state = pipeline(source, tokenizer).get_state()
    others = {
        "length: 32 then, 64 now": pipeline(source, tokenizer, length=64),
        "packing: documents then, concat now": pipeline(source, tokenizer, packing="concat"),
        "seed: 3 then, 5 now": pipeline(source, tokenizer, seed=5),
        "documents: 50 then, 49 now": pipeline(Documents(source[:49]), tokenizer),
        "tokenizer: .* then, .* now": pipeline(source, Tokenizer.train(texts(20), 301)),
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=message):
            other.set_state(state)
    old = {**state, "settings": state["settings"] | {"tokenizer": "0123456789abcdef"}}  # of a run of an older version
    with pytest.warns(UserWarning, match="by an older version, whose fingerprint of a tokenizer cannot be compared"):
        pipeline(source, tokenizer).set_state(old)
    changed = pipeline(Documents(["short"] * 50), tokenizer)
    changed.set_state({**state, "row": 30})
    with pytest.raises(
        ValueError, match="saved position is row 30 of group 0, which has .* the documents are not those"
    ):
        next(changed)


def test_one_document_is_enough_to_train(tokenizer):
    batches = take(pipeline(Documents(["a few words"]), tokenizer, batch_size=8, group=None), 3)
    assert all(batch["valid_BT"].any(axis=1).all() for batch in batches)
    assert len(take(pipeline(Documents(["a few words"]), tokenizer, batch_size=8, epochs=1))) == 1


def test_empty_documents_are_nothing(source, tokenizer):
    mixed = Documents(["", *(document["text"] for document in source), "", ""])
    assert targets(take(pipeline(mixed, tokenizer, epochs=1, group=2))) == expected(source, tokenizer)
    for epochs in (1, None):
        with pytest.raises(ValueError, match="no document of the source has any text"):
            next(pipeline(Documents([""] * 20), tokenizer, epochs=epochs))


def test_group_follows_from_the_lengths_of_documents(tokenizer):
    def group(documents, length=32):
        batches = pipeline(Documents(documents), tokenizer, length=length, group=None)
        return batches.get_state()["settings"]["group"]

    assert group(["x" * 4096] * 5000) == 256
    assert group(["x" * 4096] * 5000, length=8192) == 512
    assert group(["x" * 4096] * 100) == 100
    assert group(["x" * 10_000_000] * 20) == 16
    assert group([""]) == 1
    assert group([{"translation": {"en": "x" * 4096, "fr": ""}}] * 5000) == 256


def test_bytes_that_a_tokenizer_drops_still_count(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "code"]))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[SEP]"}')
    documents = Documents(["  the code é  ", "   ", "code"])
    batches = take(pipeline(documents, Tokenizer.load(tmp_path), length=8, batch_size=2, epochs=1))
    assert sum(batch["bytes_B"].sum() for batch in batches) == sum(len(d["text"].encode()) for d in documents)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_document_that_cannot_be_read_ends_the_run_with_its_name(source, tokenizer, workers):
    batches = pipeline(Fails(source), tokenizer, epochs=1, workers=workers)
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 18: not JSON"):
        list(batches)
    batches.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1}, "length is 1: it must be at least 2"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"epochs": 0}, "epochs=0"),
        ({"workers": -1}, "workers=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"packing": "greedy"}, "packing is 'greedy': it must be documents or concat"),
        ({"process_count": 3}, "batch_size=4 rows cannot be shared out evenly to 3 processes"),
        ({"process_index": 2, "process_count": 2}, "process_index=2: it must be from 0 to process_count - 1 = 1"),
    ],
)
def test_settings_out_of_range(source, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        pipeline(source, tokenizer, **settings)


def test_what_cannot_make_batches(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="the source has no documents"):
        pipeline(Documents([]), tokenizer)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    with pytest.raises(ValueError, match="no end-of-text token"):
        pipeline(Documents(["a"]), Tokenizer.load(tmp_path))


KILLED = """
import multiprocessing, os, signal, threading
from tests.test_pipeline import Documents, Tokenizer, pipeline, texts

def press():
    while not ended.wait(0.01):
        os.killpg(0, signal.SIGINT)

if __name__ == "__main__":
    batches = pipeline(Documents(texts(50)), Tokenizer.train(texts(20), 300), workers=1)
    heard, ended = [], threading.Event()
    signal.signal(signal.SIGINT, lambda *signal: heard.append(signal))
    threading.Thread(target=press).start()
    next(batches)
    ended.set()
    assert heard
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_workers_do_not_hear_ctrl_c_and_do_not_outlive_a_run_that_is_killed(tmp_path):
    """Ctrl-C goes to all processes of a terminal, while they import too."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, process_group=0, timeout=120
    )
    assert "Traceback" not in done.stderr, done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert workers
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, f"workers {workers} live on"
        time.sleep(0.1)


def test_workers_end_when_they_are_no_longer_needed(tokenizer):
    """Even if they have sent more rows, never read, than a pipe holds."""
    batches = pipeline(Documents(texts(400)), tokenizer, workers=2, group=200)
    next(batches)
    workers = multiprocessing.active_children()
    time.sleep(1)  # both have rows in the pipe, and more to send
    begin = time.monotonic()
    batches.close()
    assert time.monotonic() - begin < 10
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # nobody may have reaped it yet
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")
