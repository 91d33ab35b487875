"""Texts that an encoder-decoder generates, and eval.py, which scores them."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console
from test_seq2seq_tokenizers import folders  # noqa: F401  (a fixture)

import transformer_zoo as zoo
from transformer_zoo import commands, loop, runs
from transformer_zoo.config import Checkpoints, Data, Evaluation, Logging, Mesh, Run, Training, Vocabulary
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.evaluation import bleu, rouge, write
from transformer_zoo.evaluation import written as module
from transformer_zoo.generation.generate import generate
from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.models import t5
from transformer_zoo.objectives import CausalLM, Seq2SeqLM, SpanCorruption

pytestmark = pytest.mark.usefixtures("wide_terminal")
TEXTS = ["the sun is red", "", "a house", "the very old stone by the sea is wide and tall and red", "the tree", "sun"]
EXAMPLES = [{"en": text, "fr": " ".join(reversed(text.split())), "note": f"{i}"} for i, text in enumerate(TEXTS)]
OBJECTIVE = Seq2SeqLM(source="en", target="fr", prefix="say: ")
LENGTH, NEW = 12, 8


@pytest.fixture(scope="module")
def bundle():
    tokenizer = Tokenizer.train([text for example in EXAMPLES for text in example.values()] * 2, 400, kind="t5")
    config = t5.Config(
        vocab_size=tokenizer.vocab_size, width=16, num_layers=1, num_decoder_layers=1, num_heads=2, head_dim=8,
        mlp_dim=32, tied=False, scale_logits=False, init_scale=3.0, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id,
    )  # fmt: skip
    return dataclasses.replace(zoo.from_config("t5", config, seed=2), tokenizer=tokenizer)


def one_by_one(m, text: str, **how) -> str:
    """By hand: the source truncated to leave room for the end token, and the text of the new tokens before an end
    token."""
    eos = m.config.eos_id
    ids = [*m.tokenizer.encode(text).ids.tolist()[: LENGTH - 1], eos]
    new = generate(m, [ids], max_new_tokens=NEW, **how)[0].tolist()
    return m.tokenizer.decode(new[: new.index(eos)] if eos in new else new)


def test_written_beside_its_own_source(bundle):
    found = write(bundle, OBJECTIVE, EXAMPLES, length=LENGTH, max_new_tokens=NEW, batch_size=4)
    assert found == [one_by_one(bundle, f"say: {text}") for text in TEXTS]
    assert len(set(found)) > 3  # or the order would not matter
    fits = [i for i, text in enumerate(TEXTS) if len(bundle.tokenizer.encode(f"say: {text}").ids) < LENGTH]
    assert 1 < len(fits) < len(TEXTS)
    assert [found[i] for i in fits] == generate(bundle, [f"say: {TEXTS[i]}" for i in fits], max_new_tokens=NEW)
    plain = dataclasses.replace(OBJECTIVE, prefix="")
    assert write(bundle, plain, EXAMPLES, length=LENGTH, max_new_tokens=NEW) != found
    assert write(bundle, OBJECTIVE, [], length=LENGTH) == []


def test_the_best_of_several_answers(bundle):
    beam = zoo.Beam(num_beams=3, num_return_sequences=2)
    found = write(bundle, OBJECTIVE, EXAMPLES, length=LENGTH, max_new_tokens=NEW, sampling=beam, batch_size=4)
    best = zoo.Beam(num_beams=3)
    assert found == [one_by_one(bundle, f"say: {text}", sampling=best) for text in TEXTS]


@pytest.fixture
def asked(monkeypatch):
    """The calls of `generate`, which then generates nothing."""
    calls = []

    def silent(m, rows, **how):
        calls.append((m, rows, how))
        return np.full((len(rows), how["max_new_tokens"]), m.config.eos_id)

    monkeypatch.setattr(module, "generate", silent)
    return calls


def test_batches_are_of_one_size_and_of_similar_lengths(bundle, asked):
    examples = [{"en": "sun " * n} for n in (1, 20, 2, 19, 3, 18, 4)]
    objective = dataclasses.replace(OBJECTIVE, target_length=5)
    assert write(bundle, objective, examples, length=64, batch_size=3) == [""] * 7
    assert all(len(rows) == 3 and how["max_new_tokens"] == 5 for _, rows, how in asked)
    spread = [max(map(len, rows)) - min(map(len, rows)) for _, rows, _ in asked]
    assert len(asked) == 3 and max(spread) <= 2 * len(bundle.tokenizer.encode(" sun").ids)
    asked.clear()
    write(bundle, objective, examples[:2], length=64)
    assert [len(rows) for _, rows, _ in asked] == [2]


@pytest.mark.parametrize(
    ("name", "languages", "language"),
    [
        ("mbart", ("en_XX", "fr_XX"), "fr_XX"),
        ("mbart-50", ("en_XX", "fr_XX"), "fr_XX"),
        ("marian", ("fra", "fra"), None),
    ],
)
def test_languages_are_said_where_training_says_them(bundle, asked, folders, name, languages, language):  # noqa: F811
    tokenizer = Tokenizer.load(folders[name])
    m = dataclasses.replace(bundle, tokenizer=tokenizer)
    write(m, dataclasses.replace(OBJECTIVE, languages=languages), EXAMPLES[:1], length=40)
    ((_, (row,), how),) = asked
    assert tokenizer.language_id(languages[0]) in row and how["language"] == language


def test_a_model_without_a_start_token_takes_that_of_training(bundle, asked):
    without = bundle.replace(token_ids=dataclasses.replace(TokenIds.of_model(bundle), decoder_start=None))
    write(without, dataclasses.replace(OBJECTIVE, start_id=7), EXAMPLES[:1], length=9)
    write(bundle, dataclasses.replace(OBJECTIVE, start_id=7), EXAMPLES[:1], length=9)
    assert [TokenIds.of_model(m).decoder_start for m, _, _ in asked] == [7, bundle.config.decoder_start_id]


def test_what_cannot_be_written(bundle):
    with pytest.raises(ValueError, match="the objective span-corruption has no source to read"):
        write(bundle, SpanCorruption(), EXAMPLES, length=LENGTH)
    with pytest.raises(ValueError, match="no field 'source': it has en, fr, note"):
        write(bundle, Seq2SeqLM(), EXAMPLES, length=LENGTH)
    with pytest.raises(ValueError, match="has no tokenizer"):
        write(dataclasses.replace(bundle, tokenizer=None), OBJECTIVE, EXAMPLES, length=LENGTH)
    base = dataclasses.replace(bundle, model=bundle.model.clone(task="base"))
    with pytest.raises(ValueError, match="'base' does not generate"):
        write(base, OBJECTIVE, EXAMPLES, length=LENGTH)


# ---- eval.py --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("".join(f"{json.dumps(example)}\n" for example in EXAMPLES if example["en"]))
    return f"jsonl:{file}:en"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> str:
    """The folder of a run of two steps."""
    directory = tmp_path_factory.mktemp("written") / "run"
    run = Run(
        model=t5.Config(
            vocab_size=400, width=16, num_layers=1, num_decoder_layers=1, num_heads=2, head_dim=8, mlp_dim=32
        ),
        objective=dataclasses.replace(OBJECTIVE, target_length=NEW),
        directory=str(directory),
        data=Data(source=data, train_split="all", validation_split="all", length=LENGTH),
        vocabulary=Vocabulary(kind="t5", size=400),
        mesh=Mesh(data=8),
        training=Training(steps=2, batch_size=8),
        evaluation=Evaluation(every=2, batches=1),
        checkpoints=Checkpoints(every=2),
        logging=Logging(tensorboard=False),
    )
    loop.train(run, Console(file=io.StringIO()))
    return run.directory


def scored(texts: list[str], references: list[str]) -> dict[str, float]:
    return {"bleu": bleu(texts, references), **rouge(texts, references)}


def test_a_run_is_scored_by_what_it_writes(capsys, run, tmp_path):
    out = tmp_path / "out.json"
    assert commands.evaluate_command([run, "--write", "4", "--beams", "2", "--json", str(out)]) == 0
    said, record = capsys.readouterr().out, json.loads(out.read_text())
    m, kept = runs.load_run(run), [example for example in EXAMPLES if example["en"]][:4]
    found = record["written"]
    texts = write(m, OBJECTIVE, kept, length=LENGTH, max_new_tokens=NEW, sampling=zoo.Beam(num_beams=2))
    assert [(e["source"], e["reference"]) for e in found["examples"]] == [(e["en"], e["fr"]) for e in kept]
    assert [e["written"] for e in found["examples"]] == texts
    references = [example["fr"] for example in kept]
    assert found["model"] == scored(texts, references) and record["loss"] > 0
    copied = scored([example["en"] for example in kept], references)
    assert found["baseline"] == {"field": "en", **copied} and copied["rouge1"] == pytest.approx(100)
    assert "4 texts written" in said and "baseline: en" in said and "the split has only" not in said
    assert all(title in said for title in ("perplexity", "BLEU", "ROUGE-1", "ROUGE-2", "ROUGE-L"))
    assert f"{copied['rougeL']:.2f}" in said
    assert kept[2]["fr"] in said and kept[3]["fr"] not in said  # three are shown


def test_another_baseline_and_as_many_as_there_are(capsys, run, tmp_path):
    out = tmp_path / "out.json"
    options = ["--max-new-tokens", "3", "--json", str(out)]
    assert commands.evaluate_command([run, "--write", "99", "--baseline", "note", *options]) == 0
    said = capsys.readouterr().out
    assert "--write 99: the split has only 5 examples" in said and "5 texts written" in said
    some = json.loads(out.read_text())["written"]
    kept = [example for example in EXAMPLES if example["en"]]
    assert some["texts"] == len(kept) == 5
    expected = scored([example["note"] for example in kept], [example["fr"] for example in kept])
    assert some["baseline"] == {"field": "note", **expected}
    assert commands.evaluate_command([run, "--write", "all", "--set", "source=fr", "target=en", *options]) == 0
    turned = json.loads(out.read_text())["written"]
    assert [e["source"] for e in turned["examples"]] == [e["reference"] for e in some["examples"]]
    assert turned["baseline"]["field"] == "fr"
    assert commands.evaluate_command([run, "--json", str(out)]) == 0
    assert "written" not in json.loads(out.read_text())


def test_a_published_model_is_told_fields_and_prefix(capsys, bundle, data, tmp_path):
    zoo.save_pretrained(tmp_path / "model", bundle)
    command = [str(tmp_path / "model"), "--source", data, "--split", "all", "--length", str(LENGTH)]
    out = ["--json", str(tmp_path / "out.json")]
    settings = ["--set", "source=en", "target=fr", "prefix=say: ", f"target_length={NEW}"]
    assert commands.evaluate_command([*command, "--write", "all", *settings, *out]) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    examples = record["written"]["examples"]
    assert [e["written"] for e in examples] == [one_by_one(bundle, f"say: {e['source']}") for e in examples]
    capsys.readouterr()

    def fault(*options: str) -> str:
        assert commands.evaluate_command([*command, *options]) == 1
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and "loss" not in captured.out
        return captured.err

    known = "target_length, label_smoothing, logits_chunks, start_id, source, target, prefix, languages, too_long"
    assert known in fault("--set", "sorce=en")
    assert "--set source: give NAME=VALUE" in fault("--set", "source")
    assert "--set target_length=many: the value is no int | None" in fault("--set", "target_length=many")
    assert "too_long=dropped: the value is no Literal['truncate', 'drop', 'refuse']" in fault(
        "--set", "too_long=dropped"
    )
    assert "target_length is 0" in fault("--set", "target_length=0")
    told = settings[:3]
    assert "no field 'notes': it has en, fr, note, text" in fault(*told, "--write", "2", "--baseline", "notes")
    assert "no field 'source': it has en, fr" in fault("--write", "2")
    assert "--write -1: give a number" in fault(*told, "--write=-1")
    assert "--beams needs --write, such as --write 200" in fault(*told, "--beams", "2")
    assert "--beams 0 must be" in fault(*told, "--write", "2", "--beams", "0")
    assert "span-corruption has no source" in fault("--objective", "span-corruption", "--write", "2")
    assert "the objective masked-lm needs the task" in fault("--objective", "masked-lm", "--write", "2")


def test_settings_are_spelt_as_for_training():
    change = commands._with_settings
    told = change(OBJECTIVE, ("languages=None fr", "too_long=drop", "label_smoothing=1e-1", "prefix=--a=b "))
    assert told == dataclasses.replace(
        OBJECTIVE, languages=(None, "fr"), too_long="drop", label_smoothing=0.1, prefix="--a=b "
    )
    assert change(CausalLM(), ("logits_chunks=4",)) == CausalLM(logits_chunks=4) and change(OBJECTIVE, ()) == OBJECTIVE
