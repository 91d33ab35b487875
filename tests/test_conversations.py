"""Supervised fine-tuning: which tokens of a conversation are answers, rows of them, and what is no conversation. The
comparison with the reference is in parity/test_chat.py."""

import dataclasses
import functools
import json

import chats
import jax.numpy as jnp
import numpy as np
import pytest
from chats import SYSTEM, assistant, user

import transformer_zoo as zoo
from transformer_zoo.config import Data, Run, Training, Vocabulary
from transformer_zoo.data import rows as data_rows
from transformer_zoo.data import sources
from transformer_zoo.data.conversations import messages_in
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.models import llama
from transformer_zoo.objectives import SupervisedFineTuning
from transformer_zoo.resolve import resolve

TURNS = [user("Hi"), assistant(" Hello.\n"), user("And you?"), assistant("Brief")]
CALLED = [user("Warm?"), assistant(None, tool_calls=[chats.CALL]), {"role": "tool", "content": "21"}, assistant("Yes")]
REASONED = (  # as Qwen3's: only the last answer has its reasoning
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BEGUN = (  # as DeepSeek-R1's: a prompt begins what an answer does not have
    "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:<think>{% endif %}"
)


def answers(tokenizer: Tokenizer, messages, **kwargs) -> list[str]:
    """The texts of the runs of tokens that the assistant writes."""
    ids, written = tokenizer.encode_answers(messages, **kwargs)
    assert written.dtype == bool and written.shape == ids.shape
    if not kwargs:
        assert ids.tolist() == tokenizer.encode_chat(messages, generation_prompt=False).tolist()
    borders = np.flatnonzero(np.diff(np.concatenate([[False], written, [False]])))
    return [tokenizer.decode(ids[a:b], special=True) for a, b in borders.reshape(-1, 2)]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("chatml", [" Hello.\n<|im_end|>", "Brief<|im_end|>"]),
        ("llama-2", [" Hello. </s>", " Brief </s>"]),  # by its marks
        ("llama-3", ["Hello.<|eot_id|>", "Brief<|eot_id|>"]),
        ("mistral", [" Hello.</s>", " Brief</s>"]),
        ("gemma", ["Hello.<end_of_turn>", "Brief<end_of_turn>"]),
    ],
)
def test_answers_with_the_token_that_ends_them(template, expected):
    tokenizer = chats.tokenizer(chats.TEMPLATES[template])
    assert answers(tokenizer, TURNS) == expected
    assert answers(tokenizer, TURNS, last=True) == expected[-1:]
    assert answers(tokenizer, [*TURNS, user("Bye")], last=True) == expected[-1:]
    assert answers(tokenizer, [*TURNS, user("Bye")]) == expected


def test_what_answers_are_made_of():
    """Calls of tools; special tokens that messages spell out, which end nothing; characters of several tokens."""
    tokenizer = chats.tokenizer(chats.CHATML)
    call = json.dumps(chats.CALL["function"], indent=2, ensure_ascii=False)
    assert answers(tokenizer, CALLED) == [f"\n<tool_call>\n{call}\n</tool_call><|im_end|>", "Yes<|im_end|>"]
    strange = [user("<|im_end|>"), assistant("a<|im_end|>\n"), user("<|im_start|>assistant\n"), assistant("文😀")]
    assert answers(tokenizer, strange) == ["a<|im_end|>\n<|im_end|>", "文😀<|im_end|>"]
    ids, written = tokenizer.encode_answers(strange)
    assert (ids[written] == tokenizer.end_of_turn_id).sum() == 2  # what is spelt out is text
    marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}<s>{% endfor %}"
    assert answers(chats.tokenizer(marked), strange) == [message["content"] for message in strange]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (REASONED, TURNS, "the end of message 1, an answer, otherwise with later messages: '<think>.*becomes ' Hello"),
        (BEGUN, TURNS, "in front of message 1, an answer, otherwise with that answer: '<think>' becomes ' Hello"),
        (chats.CHATML, [assistant("Hi"), user("Hi")], "message 0 is the assistant's"),
        (chats.CHATML, [], "no messages"),
        (None, TURNS, "no chat template"),
    ],
)
def test_answers_without_a_place(template, messages, message):
    tokenizer = chats.tokenizer(template)
    with pytest.raises(ValueError, match=message):
        tokenizer.encode_answers(messages)
    if template == REASONED:
        assert answers(tokenizer, TURNS, last=True) == ["<think></think>Brief<|im_end|>"]


# ---- rows -----------------------------------------------------------------------------------------------------------


def document(*texts: str) -> dict:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}


def test_rows():
    """Whole conversations side by side; those that are too long lose their end, or all."""
    template = "{% for m in messages %}{{ m.role[0] + m.content + '</s>' }}{% endfor %}"
    tokenizer = chats.tokenizer(template + "{% if add_generation_prompt %}a{% endif %}")
    documents = [document("b" * n, "c" * n, "d", "efgh") for n in (1, 2, 3, 12, 30, 1)]
    objective = SupervisedFineTuning()
    make_rows = objective.rows(tokenizer, Data(length=32))
    rows = make_rows(documents, np.random.default_rng(0))
    assert {name: (x.shape[1:], x.dtype) for name, x in rows.items()} == {
        name: (shape[1:], dtype) for name, (shape, dtype) in make_rows.shapes(1).items()
    }
    found = []
    text = functools.partial(tokenizer.decode, special=True)
    names = ("tokens", "targets", "valid", "documents", "positions")
    for tokens, targets, valid, numbers, positions in zip(*(rows[f"{name}_BT"] for name in names)):
        for number in range(1, numbers.max() + 1):
            here = numbers == number
            assert positions[here].tolist() == [*range(here.sum())]
            whole = [tokens[here][0], *targets[here]]
            assert whole[:-1] == tokens[here].tolist()
            found.append((text(whole), text(targets[here & valid])))
    whole = lambda n: (f"u{'b' * n}</s>a{'c' * n}</s>ud</s>aefgh</s>", f"{'c' * n}</s>efgh</s>")
    assert sorted(found) == sorted(
        [*map(whole, (1, 1, 2, 3)), (f"u{'b' * 12}</s>a{'c' * 12}</s>ud</s>aef", f"{'c' * 12}</s>ef")]
    )
    assert len(rows["tokens_BT"]) < len(found)
    assert make_rows.cut(documents) == (2, 1)
    line = data_rows.cut_line(make_rows, {"train": Listed(documents)}, None)
    assert "2 of 6 in train, of which 1 are left out, with nothing to predict (data.length is 32)" in line
    with pytest.raises(ValueError, match="all 1 documents of train are too long, and left out.*set data.length higher"):
        data_rows.cut_line(make_rows, {"train": Listed(documents[4:5])}, None)
    assert make_rows.characters(documents[0]) == 7
    last = SupervisedFineTuning(answers="last").rows(tokenizer, Data(length=32))(documents[:1], None)
    assert text(last["targets_BT"][last["valid_BT"]]) == "efgh</s>"
    assert len(make_rows(documents[4:5], None)["tokens_BT"]) == 0
    with pytest.raises(ValueError, match="conversations need data.packing=documents"):
        objective.maker(Data(packing="concat"))
    with pytest.raises(ValueError, match="no chat template"):
        objective.rows(chats.tokenizer(), Data())


def test_tools_of_a_conversation():
    """The template writes them and the calls of them, as `zoo.chat` does; from a list, or from its text."""
    tokenizer, tools = chats.tokenizer(chats.CHATML), [chats.TOOL]
    ids, written = tokenizer.encode_answers(CALLED, tools)
    assert tokenizer.decode(ids, special=True).count('"name": "weather"') == 2  # the tool, and the call
    make_rows = SupervisedFineTuning().rows(tokenizer, Data(length=512))
    for given in (tools, json.dumps(tools)):
        rows = make_rows([{"messages": CALLED, "tools": given}], None)
        whole = [rows["tokens_BT"][0, 0], *rows["targets_BT"][0, : len(ids) - 1]]
        assert whole == ids.tolist() and rows["valid_BT"][0, : len(ids) - 1].tolist() == written[1:].tolist()
    without = [make_rows([{"messages": CALLED, **given}], None) for given in ({}, {"tools": None}, {"tools": ""})]
    assert all(np.array_equal(rows["tokens_BT"], without[0]["tokens_BT"]) for rows in without)
    assert not np.array_equal(rows["tokens_BT"], without[0]["tokens_BT"])
    with pytest.raises(ValueError, match="the chat template of folder does not write tools: leave them out"):
        chats.tokenizer(chats.LLAMA_3).chat(TURNS[:1], tools)


class Listed(sources.Source):
    def __init__(self, documents):
        self.documents = documents

    def __len__(self):
        return len(self.documents)

    def read(self, index):
        return self.documents[index]


def test_spellings_of_a_conversation():
    usual = [SYSTEM, user("Hi"), assistant("Hello.")]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    share = [{"from": names[message["role"]], "value": message["content"]} for message in usual]
    assert messages_in({"messages": usual}, ("messages",)) == usual
    assert messages_in({"conversations": share}, ("conversations",)) == usual
    null = [message | {"tool_calls": None} for message in usual]  # as Parquet has them
    assert messages_in({"messages": null}, ("messages",)) == usual
    assert messages_in({"q": "Hi", "a": "Hello."}, ("q", "a")) == usual[1:]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "the conversation has no messages"),
        ({"messages": "Hi"}, "messages is 'Hi', where a list of messages is expected.*objective.fields names both"),
        ({"messages": [user("Hi"), {"role": "bot", "content": "Hi"}]}, "message 1 has the unknown role 'bot': .*tool"),
        ({"messages": [{"from": "alien", "value": "Hi"}]}, "message 0 has the unknown role 'alien'"),
        ({"messages": [user("Hi"), {"role": "assistant"}]}, "message 1 has no content"),
        ({"messages": [user("Hi"), assistant(" ")]}, "message 1, an answer, is empty"),
        ({"messages": [SYSTEM, user("Hi")]}, "has no answer: no message has the role assistant"),
        ({"prompt": "Hi"}, "no field 'messages': it has prompt"),
        ({"messages": TURNS, "tools": {"name": "weather"}}, "tools is {'name': .*where a list of functions as JSON sc"),
        ({"messages": TURNS, "tools": ["weather"]}, r"tools is \['weather'\], where a list of functions"),
        ({"messages": TURNS, "tools": "weather"}, "tools is not JSON"),
    ],
)
def test_what_is_no_conversation_is_named(tmp_path, fields, message):
    good = {"messages": TURNS}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(good)}\n\n{json.dumps(fields)}\n")
    documents = sources.source(f"jsonl:{tmp_path}/a.jsonl", "all")
    with pytest.raises(ValueError, match=f"split all, {tmp_path}/a.jsonl, line 3: .*{message}"):
        SupervisedFineTuning().with_labels(None, {"all": documents})
    if "messages" in fields:
        with pytest.raises(ValueError, match=f"^{tmp_path}/a.jsonl, line 3: .*{message}"):
            SupervisedFineTuning().rows(chats.tokenizer(chats.CHATML), Data())([documents[1]], None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"fields": ()}, "fields is"), ({"fields": ("a", "b", "c")}, "or two"), ({"answers": "first"}, "all or last")],
)
def test_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SupervisedFineTuning(**settings)


# ---- with a model ---------------------------------------------------------------------------------------------------


def test_a_run(tmp_path):
    """Packed conversations are as each alone. The run has the chat template that was given, and it is saved."""
    chats.tokenizer().save(tmp_path / "tokenizer")
    (tmp_path / "own.jinja").write_text(chats.GEMMA)
    lines = (json.dumps(document(f"Hi {i}", "Hello.", "And you?", f"Later {i}")) + "\n" for i in range(8))
    (tmp_path / "chats.jsonl").write_text("".join(lines))
    sizes = dict(width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_dim=8, max_length=160)
    run = Run(
        model=llama.Config(vocab_size=Tokenizer.load(tmp_path / "tokenizer").vocab_size, **sizes),
        objective=SupervisedFineTuning(),
        directory=str(tmp_path / "run"),
        data=Data(source=f"jsonl:{tmp_path}/chats.jsonl", length=160, validation_share=0.3),
        vocabulary=Vocabulary(path=str(tmp_path / "tokenizer"), chat_template=str(tmp_path / "own.jinja")),
        training=Training(epochs=2, batch_size=8),
    )
    with pytest.warns(UserWarning, match=r"a text ends with token \d+ .* generates with 2: set model.eos_id to"):
        resolved = resolve(run)
    assert resolved.steps == 1
    resolved.tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").chat_templates == {"default": chats.GEMMA}

    m = zoo.from_config("llama", run.model)
    documents = [*resolved.train_source][:3]

    def sums_and_counts(documents):
        batch = {name: jnp.asarray(x) for name, x in resolved.make_rows(documents, None).items()}
        return run.objective.sums(m.model, m.params, batch), run.objective.counts(batch)

    together, counts = sums_and_counts(documents)
    assert counts["examples"] == 3 and counts["targets"] < counts["tokens"] < 160
    alone = [sums_and_counts([document]) for document in documents]
    np.testing.assert_allclose(together["nats"], sum(sums["nats"] for sums, _ in alone), rtol=1e-5)
    assert all(counts[name] == sum(one[name] for _, one in alone) for name in counts)
    report = run.objective.report(together, counts)
    np.testing.assert_allclose(report["loss"], together["nats"] / counts["targets"])
    assert report.keys() == {"loss", "perplexity", "accuracy"}

    absent = dataclasses.replace(run, vocabulary=dataclasses.replace(run.vocabulary, chat_template="none.jinja"))
    with pytest.raises(FileNotFoundError, match="vocabulary.chat_template: there is no file 'none.jinja'"):
        resolve(absent)
    (tmp_path / "own.jinja").write_text("{% for message in messages %}")
    with pytest.raises(ValueError, match=f"the chat template of {tmp_path}/own.jinja cannot be rendered: .*endfor"):
        resolve(run)
