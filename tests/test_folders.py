"""Folders as people have them: with faults that do not matter, with stale or odd settings, and damaged."""

import dataclasses
import hashlib
import json
import os
import re
import sys
import time
import tracemalloc
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_legacy as legacy
from test_pretrained import assert_same, edit, made, random

import transformer_zoo as zoo
from transformer_zoo import folders, logs, names, registry, runs, trees
from transformer_zoo.checkpoints import safetensors, torch_bin
from transformer_zoo.checkpoints.orbax import Checkpoints


def rewrite(folder: Path, change: Any) -> None:
    """Changes the tensors of a folder by a function of them, by name."""
    tensors = {name: np.array(x) for name, x in safetensors.read_folder(folder).items()}
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    safetensors.write_folder(folder, change(tensors))


@pytest.fixture
def body(tmp_path: Path) -> Path:
    zoo.save_pretrained(tmp_path, random("bert", "base"))
    return tmp_path


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    zoo.save_pretrained(tmp_path, labelled("bad", "so-so", "good"))
    return tmp_path


def labelled(*labels: str, task: str = "sequence-classification") -> zoo.Bundle:
    config = dataclasses.replace(random("bert", "base").config, labels=labels)
    model = registry.family("bert").Model(config, task=task)
    return zoo.Bundle(model, families.random_params(model), config)


def quietly(folder: Path, **settings: Any) -> zoo.Bundle:
    """The model of a folder, which is loaded without any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return zoo.from_pretrained(folder, **settings)


# ---- a family without a model_type -----------------------------------------------------------------------------------


def test_config_without_a_model_type(body: Path):
    expected = quietly(body)
    for missing in ("absent", None):
        edit(body, model_type=missing)
        with pytest.raises(ValueError, match='config.json names no model_type: give the family. Its architecture '
                                             'BertModel is one of family="bert"'):  # fmt: skip
            zoo.from_pretrained(body)
        assert_same(quietly(body, family="bert"), expected)
    edit(body, architectures="absent")
    with pytest.raises(ValueError, match='The names of its tensors are those of .*family="bert"'):
        zoo.from_pretrained(body)
    assert_same(quietly(body, family="bert", task="base"), expected)
    (body / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="give the family. Known are albert, .*t5"):
        zoo.from_pretrained(body)


def test_a_family_that_contradicts_the_model_type(body: Path):
    with pytest.raises(ValueError, match="config.json has the model_type 'bert', and t5 reads t5 or mt5 or umt5"):
        zoo.from_pretrained(body, family="t5")
    with pytest.raises(ValueError, match="there is no family 'brt'.* Did you mean 'bert'"):
        zoo.from_pretrained(body, family="brt")
    assert_same(quietly(body, family="bert"), quietly(body))


def test_config_of_another_model_type_than_its_class(tmp_path: Path):
    """Translation models of 2020 were published as BART's, and without the first token of a target."""
    m = random("marian", "seq2seq-lm")
    zoo.save_pretrained(tmp_path, m)
    edit(tmp_path, model_type="bart", normalize_embedding=False, decoder_start_token_id="absent")
    with pytest.raises(ValueError, match="normalize_embedding is False.*MarianMTModel is one of family=.marian.: give"):
        zoo.from_pretrained(tmp_path)
    found = zoo.from_pretrained(tmp_path, family="marian")
    assert found.config == dataclasses.replace(m.config, decoder_start_id=m.config.pad_id)
    with pytest.raises(ValueError, match="has the model_type 'bart', and bert reads bert"):
        zoo.from_pretrained(tmp_path, family="bert")


def test_padding_that_is_the_begin_of_a_text(tmp_path: Path):
    """The positions of RoBERTa are numbered from it."""
    zoo.save_pretrained(tmp_path, random("roberta", "base"))
    pad_id = json.loads((tmp_path / "config.json").read_text())["pad_token_id"]
    edit(tmp_path, bos_token_id=pad_id)
    with pytest.warns(UserWarning, match="pad_token_id and for bos_token_id.* numbers positions otherwise"):
        zoo.from_pretrained(tmp_path)
    edit(tmp_path, bos_token_id=pad_id + 1)
    quietly(tmp_path)


# ---- what does not matter --------------------------------------------------------------------------------------------


def test_a_tokenizer_that_cannot_be_read(body: Path):
    expected = quietly(body)
    (body / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": 3}}')
    with pytest.warns(UserWarning, match=f"{body}: the tokenizer cannot be read, so that the model takes .* ids only"):
        found = zoo.from_pretrained(body)
    assert found.tokenizer is None
    assert_same(found, expected)
    without = quietly(body, tokenizer=False)
    assert_same(without, expected)
    (body / "tokenizer.json").unlink()
    (body / "tokenizer_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="cannot be read"):
        settings_only = zoo.from_pretrained(body)
    (body / "tokenizer_config.json").unlink()
    for m, cause in (
        (found, f"that of {body} cannot be read: ValueError: {body}/tokenizer.json is not a tokenizer"),
        (
            settings_only,
            f"that of {body} cannot be read .only its tokenizer_config.json is there.: FileNotFoundError",
        ),
        (without, "it was loaded with tokenizer=False. Give it one"),
        (quietly(body), f"there is none in {body}"),
    ):
        with pytest.raises(FileNotFoundError, match=f"has no tokenizer, which turns texts into tokens, since {cause}"):
            zoo.Embedder(bundle=m, max_length=8)
        with pytest.raises(ValueError, match=f"has no tokenizer, which turns texts into tokens, since {cause}"):
            zoo.predict(m.replace(model=m.model.clone(task="masked-lm")), "a")


EXTRA = {
    "loss_fct.weight": (np.ones(3, np.float32), None),
    "module_steps": (np.ones(3, np.int64), None),
    "crf.transitions": (np.ones((3, 3), np.float32), "unexpected:  crf.transitions  in .*\n.*task=\"base\""),
    "bert.adapter.weight": (np.ones(3, np.float32), "unexpected:  bert.adapter.weight  in .*\nEither"),
    "bert.encoder.layer.3.output.dense.bias": (np.ones(16, np.float32), "unexpected:  bert.encoder.layer.3"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXTRA)
def test_tensors_that_the_model_has_not(classifier: Path, name: str):
    """What cannot be a parameter is named in a warning; the rest is an error, except for a body outside of it."""
    expected = quietly(classifier)
    rewrite(classifier, lambda tensors: tensors | {name: EXTRA[name][0]})
    if EXTRA[name][1] is None:
        with pytest.warns(UserWarning, match=f"no parameters of the model:\n  not used:  {name}"):
            assert_same(zoo.from_pretrained(classifier), expected)
    else:
        with pytest.raises(ValueError, match=EXTRA[name][1]):
            zoo.from_pretrained(classifier)
    if name.startswith("bert."):
        with pytest.raises(ValueError, match=f"unexpected:  {name}"):
            zoo.from_pretrained(classifier, task="base")
    else:
        with pytest.warns(UserWarning, match=f"not used:  {name}"):
            zoo.from_pretrained(classifier, task="base")


def test_a_model_that_was_saved_inside_another_module(classifier: Path):
    expected = quietly(classifier)
    rewrite(classifier, lambda tensors: {f"module._orig_mod.{name}": x for name, x in tensors.items()})
    assert_same(quietly(classifier), expected)
    rewrite(classifier, lambda tensors: {name.removeprefix("module."): x for name, x in tensors.items()})
    assert_same(quietly(classifier), expected)


def test_a_tied_tensor_that_no_shard_holds(tmp_path: Path):
    bundle = made()
    zoo.save_pretrained(tmp_path, bundle, max_shard_bytes=4000)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    shard = index["weight_map"]["transformer.ln_f.bias"]
    file.write_text(json.dumps(index | {"weight_map": index["weight_map"] | {"lm_head.weight": shard}}))
    assert_same(quietly(tmp_path), bundle)
    # One that no other is tied to is missed.
    tensors = {name: np.array(x) for name, x in safetensors.read_file(tmp_path / shard).items()}
    tensors.pop("transformer.ln_f.bias")
    (tmp_path / "other").mkdir()
    safetensors.write_folder(tmp_path / "other", tensors)
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / shard)
    with pytest.raises(ValueError, match="missing:  transformer.ln_f.bias"):
        zoo.from_pretrained(tmp_path)


def test_errors_about_tensors_name_their_file(tmp_path: Path):
    """Of shards the one, by the line of each tensor."""
    zoo.save_pretrained(tmp_path, random("bert", "masked-lm"), max_shard_bytes=4000)
    tensors = safetensors.read_folder(tmp_path)
    size = json.loads((tmp_path / "config.json").read_text())["intermediate_size"]
    edit(tmp_path, intermediate_size=size + 1)
    with pytest.raises(ValueError) as caught:
        zoo.from_pretrained(tmp_path)
    name = "bert.encoder.layer.0.intermediate.dense.bias"
    (line,) = (line for line in str(caught.value).splitlines() if name in line)
    assert re.search(rf"misshapen:  {name}  \[\d+\], expected .*  in {tensors[name].file.name}$", line)
    assert len({tensor.file for tensor in tensors.values()}) > 3
    edit(tmp_path, intermediate_size=size, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"unexpected:  bert.*layer\.1\..*  in model-\d+-of-\d+\.safetensors"):
        zoo.from_pretrained(tmp_path)


def test_an_adapter_beside_the_settings_of_its_base(tmp_path: Path):
    zoo.save_pretrained(tmp_path, made())
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/their-model"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="no weights that can be read: give its base, as in from_pretrained"):
        zoo.from_pretrained(tmp_path)


def test_an_encoder_alone(tmp_path: Path):
    """As published: all keys of a decoder in config.json, and none of its tensors."""
    whole = random("t5", "base")
    zoo.save_pretrained(tmp_path, whole)
    rewrite(tmp_path, lambda tensors: {name: x for name, x in tensors.items() if not name.startswith("decoder.")})
    edit(tmp_path, architectures=["T5EncoderModel"])
    alone = quietly(tmp_path)
    assert (alone.model.task, alone.config.num_decoder_layers) == ("base", 0)
    assert trees.flatten(alone.params).keys() == {
        path for path in trees.flatten(whole.params) if not path.startswith("decoder_")
    }
    source_BS = jnp.asarray([[5, 6, 7, 1], [8, 9, 1, 0]])
    both = jax.jit(lambda alone_params, params: (
        alone.model.apply({"params": alone_params}, source_BS, valid_BS=source_BS > 0),
        whole.model.apply({"params": params}, source_BS, source_BS > 0, method="encode"),
    ))  # fmt: skip
    found, expected_BSD = both(alone.params, whole.params)
    np.testing.assert_allclose(found.hidden_BTD, expected_BSD, rtol=1e-6)
    np.testing.assert_array_equal(found.encoded_BSD, found.hidden_BTD)
    assert found.logits is None
    zoo.save_pretrained(tmp_path / "again", alone)
    assert_same(quietly(tmp_path / "again"), alone)
    assert "EncoderModel" in (tmp_path / "again" / "config.json").read_text()
    with pytest.raises(ValueError, match="t5 without a decoder has no task 'seq2seq-lm': it offers base"):
        zoo.from_pretrained(tmp_path, task="seq2seq-lm")


# ---- labels ----------------------------------------------------------------------------------------------------------

LABELS = {
    "stale": ({"num_labels": 3, "id2label": {"0": "no", "1": "yes"}}, ("LABEL_0", "LABEL_1", "LABEL_2"), "2 classes"),
    "stale, by the tensors": ({"id2label": {"0": "no", "1": "yes"}}, ("LABEL_0", "LABEL_1", "LABEL_2"), "2 classes"),
    "the tensors win": ({"num_labels": 2, "id2label": {"0": "a", "1": "b", "2": "c"}}, ("a", "b", "c"), None),
    "no names": ({"num_labels": 2}, ("LABEL_0", "LABEL_1", "LABEL_2"), None),
    "from 1": ({"id2label": {"1": "a", "2": "b", "3": "c"}}, ("a", "b", "c"), "not those of the classes"),
    "gaps": ({"id2label": {"0": "a", "2": "b", "7": "c"}}, ("a", "b", "c"), "not those of the classes"),
    "a gap": ({"id2label": {"0": "a", "2": "c"}}, ("a", "LABEL_1", "c"), "some classes no name"),
    "equal": ({"id2label": {"0": "a", "1": "b", "2": "a"}}, ("a", "b", "a (2)"), "several classes one name"),
    "numbers as names": ({"id2label": {"0": 0, "1": 1, "2": None}}, ("0", "1", "None"), None),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_a_checkpoint(classifier: Path, case: str):
    settings, labels, message = LABELS[case]
    edit(classifier, **{"id2label": "absent", "label2id": "absent"} | settings)
    expected = labelled(*labels)
    if message is None:
        found = quietly(classifier)
    else:
        with pytest.warns(UserWarning, match=f"config.json: .*{message}.*; they are called {labels[0]}") as caught:
            found = zoo.from_pretrained(classifier)
        assert len(caught) == 1
    assert_same(found, expected)
    zoo.save_pretrained(classifier / "again", found)
    assert_same(quietly(classifier / "again"), expected)
    assert quietly(classifier, task="base").fresh == ()  # nobody asks for labels


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id2label": {"a": "b"}}, "id2label is an object of 1, where an object from numbers to names is expected"),
        ({"id2label": {"-1": "b"}}, "id2label is an object of 1"),
        ({"id2label": ["a"] * 10**5}, "id2label is a list of 100000"),
        ({"num_labels": 10**7}, r"num_labels is a whole number \(10000000\), where a whole number from 1 to 1,048,576"),
        ({"num_labels": True}, "num_labels is true"),
        ({"num_labels": 0}, "num_labels is a whole number .0."),
    ],
)
def test_labels_that_are_none(classifier: Path, settings: dict[str, Any], message: str):
    edit(classifier, **settings)
    with pytest.raises(ValueError, match=message):
        zoo.from_pretrained(classifier)


def scores(bundle: zoo.Bundle) -> dict[str, list[float]]:
    """What each label is scored by: its weights and its bias."""
    head = bundle.params["head"]["scores"]
    columns = np.concatenate([head["kernel"], head["bias"][None]]).T.tolist()
    return dict(zip(bundle.config.labels, columns, strict=True))


def test_labels_in_another_order_are_permuted(classifier: Path):
    before = quietly(classifier)
    found = quietly(classifier, labels=("good", "bad", "so-so"))
    assert found.config.labels == ("good", "bad", "so-so")
    assert scores(found) == scores(before)
    assert_same(quietly(classifier, labels=("bad", "so-so", "good")), before)
    assert_same(quietly(classifier, labels=3), before)
    zoo.save_pretrained(classifier / "again", found)
    assert_same(quietly(classifier / "again"), found)


def test_labels_that_are_spelt_otherwise_are_suggested(classifier: Path):
    meant = "its labels are bad, so-so, good. Did you mean 'bad' for 'BAD', 'so-so' for 'So so'\\?"
    with pytest.warns(UserWarning, match=meant):
        zoo.from_pretrained(classifier, labels=("BAD", "So so", "good"))


@pytest.mark.parametrize("labels", [("bad", "so-so", "best"), ("a", "b"), 2])
def test_other_labels_get_a_fresh_head(classifier: Path, labels: Any):
    """One that has as many, too: its scores would be called by names that they were not trained for."""
    message = "has no head/scores/bias, head/scores/kernel: fresh, .*; its labels are bad, so-so, good"
    with pytest.warns(UserWarning, match=message):
        found = zoo.from_pretrained(classifier, labels=labels)
    assert found.fresh == ("head/scores/bias", "head/scores/kernel")
    assert found.config.labels == (("LABEL_0", "LABEL_1") if labels == 2 else labels)
    kernel = lambda bundle: bundle.params["pooler"]["dense"]["kernel"]
    np.testing.assert_array_equal(kernel(found), kernel(quietly(classifier)))


@pytest.mark.parametrize(
    ("saved", "task"),
    [("sequence-classification", "token-classification"), ("token-classification", "sequence-classification"),
     ("multiple-choice", "sequence-classification")],
)  # fmt: skip
def test_a_head_is_not_used_for_another_task(tmp_path: Path, saved: str, task: str):
    """Not even where its tensors have the same names and shapes."""
    zoo.save_pretrained(tmp_path, labelled("a", task=saved))
    with pytest.warns(UserWarning, match=f"head/scores/kernel.*: fresh, .*; its head is for {saved}"):
        found = zoo.from_pretrained(tmp_path, task=task)
    assert {"head/scores/bias", "head/scores/kernel"} <= {*found.fresh}


def test_labels_and_tasks_of_a_run(monkeypatch: pytest.MonkeyPatch):
    """By the same rules."""
    trained = labelled("bad", "so-so", "good")
    monkeypatch.setattr(names, "is_run", lambda name: True)
    monkeypatch.setattr(runs, "read", lambda name: SimpleNamespace(compute=trained.model.compute, model=trained.config))
    monkeypatch.setattr(runs, "load_run", lambda *_, **__: trained)
    found = runs.load("runs/mine", labels=("good", "bad", "so-so"))
    assert found.fresh == () and scores(found) == scores(trained)
    for settings in ({"labels": ("bad", "so-so", "best")}, {"task": "token-classification"}):
        with pytest.warns(UserWarning, match="fresh parameters are head/scores/bias, head/scores/kernel"):
            assert runs.load("runs/mine", **settings).fresh == ("head/scores/bias", "head/scores/kernel")


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("bert", {"num_hidden_layers": 10**6}, "num_hidden_layers is 1,000,000, and they are .* tensors"),
        ("bert", {"hidden_size": 2 * 10**9}, "hidden_size is 2,000,000,000, and they are .* numbers"),
        ("bert", {"vocab_size": 10**12}, "vocab_size is 1,000,000,000,000, and they are"),
        ("bert", {"hidden_size": 10**30}, "hidden_size is 10*, which is not int"),
        ("bert", {"hidden_size": 10**6, "num_attention_heads": 10**6}, "misshapen:  .*|positions for"),
        ("bert", {"layer_norm_eps": float("nan")}, "layer_norm_eps is nan, which is not float"),
        ("bert", {"num_labels": 10**7}, "num_labels is a whole number .10000000."),
        ("gpt2", {"n_layer": 10**7}, "n_layer is 10,000,000, and they are .* tensors"),
        ("marian", {"max_position_embeddings": 10**9}, "max_position_embeddings is 1,000,000,000, and they are"),
        ("marian", {"d_model": 10**6, "max_position_embeddings": 10**6}, "1,000,000 positions for"),
        ("t5", {"num_decoder_layers": 10**6}, "num_decoder_layers is 1,000,000, and they are"),
    ],
)
def test_sizes_that_the_tensors_have_not(tmp_path: Path, family: str, changes: dict[str, Any], message: str):
    """They are refused before anything is made of these sizes."""
    zoo.save_pretrained(tmp_path, random(family, families.main_task(family)))
    edit(tmp_path, **changes)
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            zoo.from_pretrained(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 20 and str(tmp_path) in str(caught.value) and len(str(caught.value)) < 5000


@pytest.mark.parametrize("key", ["hidden_act", "hidden_size", "model_type", "architectures", "tie_word_embeddings"])
@pytest.mark.parametrize("value", ["x" * 10**6, [["x"] * 1000] * 100, {"x" * 1000: 3}], ids=["text", "list", "object"])
def test_an_error_echoes_little(body: Path, key: str, value: Any):
    edit(body, **{key: value})
    with pytest.raises(ValueError) as caught:
        zoo.from_pretrained(body)
    assert str(body) in str(caught.value) and len(str(caught.value)) < 2000


# ---- the folder of a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "run.json is not JSON"),
        (b"[" * 10**5, "run.json is nested more than 64 levels deep"),
        (b"[]", "run.json is a list of 0, where an object is expected"),
        (b'{"settings": 3}', "run.json does not describe a run of this version"),
        (b'{"settings": {"model": {"family": ["gpt2"]}}}', "run.json does not describe a run of this version"),
        (b'{"settings": {"model": {"family": "gpt2", "width": "x"}}}', "run.json does not describe a run"),
        (b'{"settings": {"model": {"family": "gpt2"}, "objective": 3}}', "run.json does not describe a run"),
        (b'{"settings": {"model": {"family": "gpt2"}, "objective": {"name": {}}}}', "run.json does not describe a run"),
        (b'{"settings": {"model": "' + b"x" * 10**6 + b'"}}', "run.json does not describe a run"),
    ],
)  # fmt: skip
def test_a_run_json_that_is_none(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        runs.read(tmp_path)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 1000


def test_lines_of_metrics(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    with logs.json_lines(file, 0) as write:
        write(1, {"loss": 2.0}), write(2, {"loss": float("nan")})
    file.write_text(file.read_text() + '{"step": 3, "lo')  # a kill cut it off
    assert logs.read_json_lines(file) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]
    with logs.json_lines(file, 1):
        pass
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == '{"step": 1, "loss": 2.0}\n'
    faults = (("[1]", "is a list of 1, where an object is expected"), ("{x}", "is not JSON"), ("{}", "no step"))
    for line, message in faults:
        file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
        with pytest.raises(ValueError, match=f"line 2 of {file} .*{message}"):
            logs.read_json_lines(file)


def test_tensorboard_shows_each_step_once(tmp_path: Path):
    """After a run went on from step 2, although it had reached step 3."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with logs.tensorboard(tmp_path / "tensorboard", start) as write:
            for step in steps:
                write(step, {"loss": step + start / 8})
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [(1, 1.0), (2, 2.0), (3, 3.25), (4, 4.25)]


def test_a_run_goes_on_in_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun = []

    def init(id: str | None, **settings: Any) -> SimpleNamespace:
        begun.append(id)
        return SimpleNamespace(id=id or f"run{len(begun)}", log=None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for step in (0, 5, 7, 0, 3):
        with logs.wandb("project", folders.folder(tmp_path), step, {}):
            pass
    assert begun == [None, "run1", "run1", None, "run4"]


def test_a_damaged_checkpoint_of_a_run(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, write=True)
    state = {"params": {"x": jnp.arange(3.0)}, "ema": None}
    checkpoints.save(1, state, {"at": 3})
    checkpoints.wait()
    assert checkpoints.restore(1, state)[1] == {"at": 3}
    for file in [file for file in (tmp_path / "1").rglob("*") if file.is_file() and "META" in file.name]:
        file.write_bytes(b"[" * 10**5)
    for read in (
        lambda: Checkpoints(tmp_path),
        lambda: checkpoints.restore(1, state),
        lambda: checkpoints.restore_parameters(1, {}),
    ):
        with pytest.raises(ValueError, match=f"{tmp_path}(/1)? cannot be read: it is damaged") as caught:
            read()
        assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("damage", ["missing", "short", "empty", "no position"])
def test_a_damaged_latest_checkpoint_names_the_last_whole_one(tmp_path: Path, damage: str):
    checkpoints = Checkpoints(tmp_path, write=True)
    state = {"params": {"x": jnp.arange(3000.0)}, "ema": None}
    for step in (1, 2, 3):
        checkpoints.save(step, state, {"at": step})
    checkpoints.close()
    large = max((tmp_path / "3").rglob("d/*"), key=lambda file: file.stat().st_size)
    for file in [large] if damage != "no position" else list((tmp_path / "3").rglob("data/*")):
        if damage in ("missing", "no position"):
            file.unlink()
        else:
            os.truncate(file, large.stat().st_size // 2 if damage == "short" else 0)
    (tmp_path / "2" / "state" / "_METADATA").write_text("[")
    for checkpoints in (Checkpoints(tmp_path), Checkpoints(tmp_path, write=True)):
        with pytest.raises(ValueError) as caught:
            checkpoints.restore(3, state)
        remedy = f"the checkpoint of step 1 is whole: remove the folder {tmp_path}/3, and the same command goes on from"
        assert remedy in str(caught.value) and "\n" not in str(caught.value)
        assert checkpoints.restore(1, state)[1] == {"at": 1}


# ---- verified --------------------------------------------------------------------------------------------------------


def test_verified_by_the_hashes_of_the_hub(body: Path, tmp_path: Path):
    """As the hub's client lays out its cache: large files by sha256, small ones by git's sha1."""
    expected, snapshot, blobs = quietly(body), tmp_path / "snapshots" / "main", tmp_path / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    with pytest.warns(UserWarning, match="has no hashes of the hub for model.safetensors: they are not verified"):
        assert_same(zoo.from_pretrained(body, verify=True), expected)
    content = (body / "model.safetensors").read_bytes()
    (snapshot / "config.json").write_bytes((body / "config.json").read_bytes())
    for digest in (hashlib.sha256(content), hashlib.sha1(b"blob %d\0" % len(content) + content)):
        blob, link = blobs / digest.hexdigest(), snapshot / "model.safetensors"
        blob.write_bytes(content)
        link.symlink_to(blob)
        assert_same(quietly(snapshot, verify=True), expected)
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{link} is damaged or was changed.* Delete it and download it again"):
            zoo.from_pretrained(snapshot, verify=True)
        assert quietly(snapshot).params  # a number in it has changed, which nothing else can notice
        link.unlink()
    note = body / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{'a' * 40}\n{hashlib.sha256(content).hexdigest()}\n1700000000.0\n")
    assert_same(quietly(body, verify=True), expected)
    note.write_text(f"{'a' * 40}\n{'0' * 64}\n1700000000.0\n")
    with pytest.raises(ValueError, match="on the hub it is 0000"):
        zoo.from_pretrained(body, verify=True)


def test_verified_by_the_checksums_of_a_bin(body: Path):
    expected = quietly(body)
    tensors = {name: np.array(x) for name, x in safetensors.read_folder(body).items()}
    (body / "model.safetensors").unlink()
    file = body / "pytorch_model.bin"
    content = legacy.simple("zip", tensors)
    file.write_bytes(content)
    assert_same(quietly(body, verify=True), expected)
    at = content.index(tensors["embeddings.word_embeddings.weight"].tobytes()) + 100
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert torch_bin.read_file(file)
    with pytest.raises(ValueError, match="pytorch_model.bin cannot be read: its member 'archive/data/.*checksum"):
        zoo.from_pretrained(body, verify=True)
    file.write_bytes(legacy.simple("stream", tensors))
    with pytest.warns(UserWarning, match="no hashes of the hub for pytorch_model.bin"):
        assert_same(zoo.from_pretrained(body, verify=True), expected)
