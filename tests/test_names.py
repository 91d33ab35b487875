"""Names of models; and Hugging Face's names, which errors and the README translate."""

import copy
import dataclasses
import inspect
import pickle
import re
from pathlib import Path

import families
import jax
import numpy as np
import pytest

import transformer_zoo as zoo
from transformer_zoo import hugging_face, loop, names, registry, runs
from transformer_zoo.config import Data, Run, Training
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.models import bart, bert, distilbert, gpt2, pegasus, t5
from transformer_zoo.objectives import CausalLM

ROOT = Path(__file__).parent.parent
TINY = gpt2.Config(vocab_size=280, max_length=32, width=16, num_layers=1, num_heads=2, eos_id=0)


@pytest.fixture(scope="module")
def m() -> zoo.Bundle:
    tokenizer = Tokenizer.train(["to be or not to be"] * 3, 280)
    return families.made("gpt2", TINY).replace(tokenizer=tokenizer)


@pytest.fixture
def run(tmp_path: Path, m: zoo.Bundle) -> Path:
    """A run's folder as it is before the first checkpoint."""
    folder = tmp_path / "run"
    m.tokenizer.save(folder / "tokenizer")
    runs.write(Run(model=TINY, objective=CausalLM(), directory=str(folder), data=Data(length=16), training=Training()))
    return folder


# ---- what a name stands for ------------------------------------------------------------------------------------------


def test_each_kind_of_name(run: Path, m: zoo.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    m.save_pretrained(tmp_path / "model")
    for name in (run, str(run)):
        found = names.describe(name)
        assert (found.kind, found.config, found.task, found.folder) == ("run", TINY, None, run)
    for name in (tmp_path / "model", str(tmp_path / "model")):
        found = names.describe(name)
        assert (found.kind, found.config, found.task, found.folder) == ("folder", TINY, "causal-lm", Path(name))
    monkeypatch.setattr("transformer_zoo.checkpoints.hub.resolve", None)  # nothing is fetched for a preset
    for name in ("gpt2-large", "openai-community/gpt2-large"):
        found = names.describe(name)
        assert (found.kind, found.task, found.folder) == ("preset", "causal-lm", None)
        assert found.config == registry.presets()["gpt2-large"].config and found.family is gpt2


def test_a_folder_here_comes_before_a_preset(m: zoo.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    m.save_pretrained(tmp_path / "gpt2-xl")
    monkeypatch.chdir(tmp_path)
    assert names.describe("gpt2-xl").config == TINY
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names.describe("~/gpt2-xl").config == TINY


def test_the_model_of_a_name(run: Path, m: zoo.Bundle, tmp_path: Path):
    m.save_pretrained(tmp_path / "model")
    expected = gpt2.Model(TINY)
    assert runs.model(run) == runs.model(tmp_path / "model") == expected
    assert runs.model("gpt2") == gpt2.Model(gpt2.Config())
    assert names.describe(run).model(task="base").task == "base"
    with pytest.raises(ValueError, match="run.json names no architectures: give the task"):
        names.describe(run).model()  # it depends on the objective


def test_a_run_is_not_a_published_model(run: Path, m: zoo.Bundle):
    with pytest.raises(FileNotFoundError, match=r"holds a run and no config.json: load it with load_run, .* convert"):
        zoo.from_pretrained(run)
    with pytest.raises(FileNotFoundError, match="holds a run without a checkpoint"):
        zoo.load_run(run)
    m.save_pretrained(run)
    assert zoo.from_pretrained(run).config == TINY and names.describe(run).kind == "run"
    other = families.made("gpt2", dataclasses.replace(TINY, num_layers=TINY.num_layers + 1))
    with pytest.raises(ValueError, match="run holds the run of another model, .* name another folder"):
        other.save_pretrained(run)
    (run / names.RECORD).write_text('{"settings": {"model": {"family": "gpt2", "depth": 3}}}')
    with pytest.raises(ValueError, match=r"run.json does not describe a run of this version: TypeError.*depth"):
        names.describe(run)


def test_the_tokenizer_of_a_name(run: Path, m: zoo.Bundle, tmp_path: Path):
    m.save_pretrained(tmp_path / "model")
    expected = m.tokenizer.encode("not to be").ids
    for name in (run, run / "tokenizer", run / "tokenizer" / "tokenizer.json", tmp_path / "model"):
        np.testing.assert_array_equal(zoo.load_tokenizer(name).encode("not to be").ids, expected)


# ---- how a model is computed -----------------------------------------------------------------------------------------


def test_every_setting_of_computation(m: zoo.Bundle, tmp_path: Path):
    m.save_pretrained(tmp_path)
    compute = zoo.Compute(dtype="bfloat16", param_dtype="float16", attention="xla", remat="full", unroll=1)
    assert all(getattr(compute, f.name) != f.default for f in dataclasses.fields(compute) if f.name != "unroll")
    for load in (lambda **k: zoo.from_pretrained(tmp_path, **k), lambda **k: zoo.from_config("gpt2", TINY, **k)):
        for more in ({}, {"dtype": "bfloat16"}, {"param_dtype": "float16", "dtype": "bfloat16"}):
            found = load(compute=compute, **more)
            assert found.model.compute == compute
            assert {x.dtype for x in jax.tree.leaves(found.params)} == {np.dtype("float16")}
        assert load(param_dtype="float16").model.compute == zoo.Compute(param_dtype="float16")
        with pytest.raises(ValueError, match="dtype is 'float32', and 'bfloat16' in compute: give one of them"):
            load(compute=compute, dtype="float32")
        with pytest.raises(ValueError, match="param_dtype is 'bfloat16', and 'float16' in compute"):
            load(compute=compute, param_dtype="bfloat16")
        with pytest.raises(ValueError, match="JAX_ENABLE_X64=1"):
            load(compute=zoo.Compute(dtype="float64"))
    assert runs.load(tmp_path, compute=compute).model.compute == compute
    with pytest.raises(ValueError, match="dtype is 'float32', and 'bfloat16' in compute"):
        runs.load(tmp_path, compute=compute, dtype="float32")


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")
def test_a_model_is_traced_once(m: zoo.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For all uses of its parameters' shapes; a caller's changes to these do not affect another."""
    m.save_pretrained(tmp_path)
    registry._traced.cache_clear()
    traces, init = [], registry.init
    monkeypatch.setattr(registry, "init", lambda model, key: traces.append(model) or init(model, key))
    loaded = zoo.from_pretrained(tmp_path, mesh=zoo.make_mesh(tensor=2, devices=jax.devices()[:2]))
    registry.param_shapes(loaded.model).clear()
    assert registry.param_shapes(loaded.model).keys() == m.params.keys()
    assert traces == [loaded.model]
    wide = gpt2.Model(TINY, compute=zoo.Compute(param_dtype="float64"))
    for enabled, dtype in ((False, "float32"), (True, "float64"), (False, "float32")):
        with jax.enable_x64(enabled):
            assert {x.dtype.name for x in jax.tree.leaves(registry.param_shapes(wide))} == {dtype}


# ---- a bundle's own methods ------------------------------------------------------------------------------------------


def test_methods_of_a_bundle(m: zoo.Bundle, tmp_path: Path):
    tokens_BT, valid_BT = np.arange(1, 9).reshape(2, 4), np.array([[0, 1, 1, 1], [1, 1, 1, 1]], bool)
    expected = m.model.apply({"params": m.params}, tokens_BT, valid_BT=valid_BT)
    np.testing.assert_array_equal(m(tokens_BT, valid_BT=valid_BT).logits, expected.logits)
    _, sown = m(tokens_BT, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["intermediates"])
    assert sown["intermediates"]
    hidden_BTD = m(tokens_BT, valid_BT=valid_BT).hidden_BTD
    logits_BTV = m(hidden_BTD, method="logits")  # with the rows that pad the vocabulary
    np.testing.assert_array_equal(logits_BTV[..., : TINY.vocab_size], expected.logits)

    options = {"max_new_tokens": 3, "sampling": zoo.Sample(temperature=2.0), "seed": 5}
    assert m.generate("to be", **options) == zoo.generate(m, "to be", **options)
    m.save_pretrained(tmp_path / "one", max_shard_bytes=4000)
    zoo.save_pretrained(tmp_path / "two", m, max_shard_bytes=4000)
    one, two = ({x.name: x.read_bytes() for x in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) > 4
    other = m.replace(tokenizer=None)
    assert other.tokenizer is None and other.params is m.params and m.tokenizer is not None


# ---- evaluation --------------------------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path) -> str:
    for i in range(12):
        (tmp_path / f"{i}.md").write_text("to be or not to be, that is the question. " * (i + 1))
    return f"text:{tmp_path}/*.md"


def test_evaluate(m: zoo.Bundle, notes: str):
    report = zoo.evaluate(m, source=notes, split="all", batch_size=4)
    assert report["bytes"] == sum(42 * (i + 1) for i in range(12)) and 0 < report["loss"] < 20
    some = zoo.evaluate(m, source=notes, split="all", objective=CausalLM(), batch_size=2, length=16, batches=3)
    assert some["tokens"] <= 3 * 2 * 16 and some["loss"] != report["loss"]
    other = zoo.evaluate(m, source=notes, split="all", objective="causal-lm", batch_size=3)
    np.testing.assert_allclose(other["loss"], report["loss"], rtol=1e-6)  # float32, summed in another order


def test_what_cannot_be_evaluated(m: zoo.Bundle, notes: str):
    for changes, message in (
        ({"objective": "causal_lm"}, "no objective 'causal_lm' to measure.* Did you mean 'causal-lm'?"),
        ({"objective": "masked-lm"}, "needs the task 'masked-lm'"),
        ({"split": "train_"}, "no split 'train_'"),
        ({"batches": 0}, "batches is 0: it must be at least 1"),
        ({"length": 1}, "length is 1: it must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.evaluate(m, source=notes, **changes)
    with pytest.raises(ValueError, match="has no tokenizer"):
        zoo.evaluate(m.replace(tokenizer=None), source=notes)


# ---- the names of other libraries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "theirs", "ours"),
    [
        (bert.Config(), "hidden_size", "width"),
        (TINY, "n_embd", "width"),
        (TINY, "hidden_size", "width"),  # of another family's config.json
        (t5.Config(), "d_model", "width"),
        (bart.Config(), "num_hidden_layers", "num_layers"),
        (bart.Config(), "encoder_layers", "num_layers"),
        (t5.Config(), "feed_forward_proj", "activation and gated_mlp"),
        (distilbert.Config(), "id2label", "labels"),
        (bert.Config(), "num_labels", "labels"),
    ],
)
def test_a_field_that_hugging_face_calls_otherwise(config: object, theirs: str, ours: str):
    with pytest.raises(AttributeError, match=f"no field '{theirs}'. Hugging Face's {theirs} is {ours} here.$"):
        getattr(config, theirs)


def test_a_config_is_copied_and_pickled_as_before():
    for same in (copy.deepcopy(TINY), pickle.loads(pickle.dumps(TINY)), dataclasses.replace(TINY)):
        assert same == TINY and hash(same) == hash(TINY)


def test_a_field_that_nobody_has():
    with pytest.raises(AttributeError, match="the Config of gpt2 has no field 'num_layer'. Did you mean 'num_layers'?"):
        TINY.num_layer  # noqa: B018
    with pytest.raises(AttributeError, match="no field 'num_labels'$|no field 'num_labels'. Did you"):
        pegasus.Config().num_labels  # noqa: B018  # it has no labels
    assert not hasattr(pegasus.Config(), "labels") and getattr(pegasus.Config(), "labels", 3) == 3


@pytest.mark.parametrize("family", registry.families())
def test_every_config_translates(family: str):
    config = registry.family(family).Config
    fields = {field.name for field in dataclasses.fields(config)}
    theirs = {"hidden_size", "num_hidden_layers", "num_attention_heads", "n_embd", "d_model"} - fields
    for name in theirs:
        with pytest.raises(AttributeError, match=f"Hugging Face's {name} is (width|num_layers|num_heads) here"):
            getattr(next(p.config for p in registry.presets().values() if p.family == family), name)


def test_an_argument_that_hugging_face_calls_otherwise(m: zoo.Bundle, tmp_path: Path):
    with pytest.raises(TypeError, match=r"'attention_mask'. Hugging Face's attention_mask is valid_BT .* here"):
        m(np.ones((1, 2), int), attention_mask=np.ones((1, 2), bool))
    for theirs, ours in hugging_face.LOAD.items():
        with pytest.raises(TypeError, match=f"from_pretrained.. got .* '{theirs}'. .* is {re.escape(ours)} here"):
            zoo.from_pretrained(tmp_path / "nothing", **{theirs: 3})
    with pytest.raises(TypeError, match="argument 'lables'. Did you mean 'labels'?"):
        zoo.from_pretrained(tmp_path / "nothing", lables=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'vallid_BT'"):
        m(np.ones((1, 2), int), vallid_BT=None)


def test_a_class_that_is_called_otherwise():
    with pytest.raises(AttributeError, match="AutoModelForCausalLM is from_pretrained"):
        zoo.AutoModelForCausalLM  # noqa: B018
    assert zoo.train is loop.train and zoo.load_run is runs.load_run
    with pytest.raises(AttributeError, match="no attribute 'from_pretraind'. Did you mean 'from_pretrained'"):
        zoo.from_pretraind  # noqa: B018


def test_our_names_exist():
    """The names in the tables exist: arguments of the models' calls and of `from_pretrained`, public names."""
    modules = map(registry.family, registry.families())
    calls = {name for module in modules for name in inspect.signature(module.Model.__call__).parameters}
    for ours in hugging_face.CALL.values():
        assert set(re.findall(r"\w+_B[STP]\b|\bcache\b", ours)) <= calls, ours
        assert re.search(r"\w+_B[STP]\b|\bcache\b|mutable", ours), ours
    for ours in hugging_face.LOAD.values():
        assert re.match(r"\w+", ours)[0] in inspect.signature(zoo.from_pretrained).parameters
    for ours in hugging_face.EMBED.values():
        assert re.match(r"\w+", ours)[0] in inspect.signature(zoo.Embedder.__call__).parameters
    for ours in hugging_face.CLASSES.values():
        assert re.match(r"\w+", ours)[0] in zoo.__all__
    assert "attention" in {field.name for field in dataclasses.fields(zoo.Compute)}


def test_the_readme_s_table_is_the_code_s():
    """README: | their names | ours |. It has each whole table of the code, and some of the Configs' fields."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| Hugging Face |") :].split("\n\n")[0].splitlines()[2:]
    rows = {}
    for row in table:
        theirs, ours = (cell.strip() for cell in row.strip("|").split("|"))
        rows |= {name: ours for name in re.findall(r"`([^`]+)`", theirs)}
    fields = {name.removeprefix("config."): ours for name, ours in rows.items() if name.startswith("config.")}
    assert len(fields) >= 8
    for theirs, ours in fields.items():
        assert set(re.findall(r"`config\.(\w+)`", ours)) == set(registry.fields_called(theirs)), theirs
    plain = {name: ours.replace("`", "") for name, ours in rows.items() if not name.startswith("config.")}
    assert plain == hugging_face.CALL | hugging_face.LOAD | hugging_face.EMBED | hugging_face.CLASSES


@pytest.mark.parametrize("name", ["", " ", "https://example.org/openai-community/gpt2"])
def test_what_is_no_name(name):
    with pytest.raises(ValueError, match="is no name: give a folder, or a hub id such as openai-community/gpt2"):
        names.describe(name)
