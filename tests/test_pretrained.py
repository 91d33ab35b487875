"""Models with their parameters: fresh, saved, and loaded again, for every family and task."""

import dataclasses
import json
import re
import resource
import socket
from pathlib import Path
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from conftest import QUICKLY

from transformer_zoo import pretrained, registry, sharding, trees
from transformer_zoo.checkpoints import config_map, safetensors
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.pretrained import Bundle, from_config, from_pretrained, save_pretrained

# The keys of a tiny config.json, as BERT, BART and T5 call them: nothing equal that could be mixed up.
_ANY = {"vocab_size": 90, "max_position_embeddings": 24}
_BERT = _ANY | {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
_DEBERTA = _BERT | {"relative_attention": True, "type_vocab_size": 3}
_BART = _ANY | {
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 36,
}
_T5 = {"vocab_size": 90, "d_model": 16, "d_kv": 6, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 2}
TINY = {
    "albert": _BERT | {"type_vocab_size": 3, "embedding_size": 8, "num_hidden_groups": 2, "inner_group_num": 2},
    "bart": _BART,
    "bert": _BERT | {"type_vocab_size": 3},
    "deberta": _DEBERTA | {"pos_att_type": "c2p|p2c"},
    "deberta_v2": _DEBERTA
    | {
        "pos_att_type": "p2c|c2p",
        "position_buckets": 6,
        "norm_rel_ebd": "layer_norm",
        "embedding_size": 8,
        "conv_kernel_size": 3,
    },
    "distilbert": _ANY | {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 40},
    "electra": _BERT | {"type_vocab_size": 3, "embedding_size": 10},
    "gpt2": {
        "vocab_size": 90,
        "n_positions": 24,
        "n_embd": 16,
        "n_layer": 3,
        "n_head": 2,
        "n_inner": 40,
        "eos_token_id": 7,
    },
    "longt5": _T5 | {"encoder_attention_type": "transient-global", "local_radius": 3, "global_block_size": 4},
    "marian": _BART | {"pad_token_id": 89, "decoder_start_token_id": 89},
    "mbart": _BART,
    "modernbert": _BERT | {"local_attention": 4, "pad_token_id": 4},
    "mpnet": _BERT | {"max_position_embeddings": 26},
    "pegasus": _BART,
    "roberta": _BERT | {"model_type": "camembert", "type_vocab_size": 3, "pad_token_id": 4},
    "t5": _T5,
}
TINY = {family: TINY.get(family) or families.written(family) for family in registry.families()}
EVERY = [(name, task) for name in registry.families() for task in registry.family(name).PUBLISHED.tasks]


def assert_same(a: Bundle, b: Bundle) -> None:
    ours, others = trees.flatten(a.params), trees.flatten(b.params)
    assert ours.keys() == others.keys() and a.config == b.config and a.model == b.model
    for path, x in ours.items():
        assert x.dtype == others[path].dtype, path
        assert np.asarray(x).tobytes() == np.asarray(others[path]).tobytes(), path


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in settings.items() if value != "absent"}))


def made(family: str = "gpt2", task: str | None = None, **settings: Any) -> Bundle:
    return from_config(family, TINY[family], task=task, **settings)


def random(family: str, task: str) -> Bundle:
    """As `made`, with random numbers, which need no compilation."""
    module = registry.family(family)
    config = config_map.read(module, TINY[family])
    if task in ("question-answering", "pretraining") and hasattr(config, "labels"):
        config = dataclasses.replace(config, labels=("LABEL_0", "LABEL_1"))  # what has two scores says so
    model = module.Model(config, task=task)
    return Bundle(model, families.random_params(model), config)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_pretrained(tmp_path, made())
    return tmp_path


# ---- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "task"), EVERY)
def test_saved_and_loaded_is_the_same(tmp_path: Path, family: str, task: str):
    fresh = random(family, task)
    save_pretrained(tmp_path / "one", fresh)
    loaded = from_pretrained(tmp_path / "one")  # the task is in the file
    assert_same(fresh, loaded)
    save_pretrained(tmp_path / "two", loaded)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    if task != families.main_task(family):
        return
    save_pretrained(tmp_path / "shards", loaded, max_shard_bytes=4000)
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 3
    assert_same(fresh, from_pretrained(tmp_path / "shards"))


@pytest.mark.parametrize("family", registry.families())
def test_a_folder_as_it_was_published_years_ago(tmp_path: Path, family: str):
    """With the heads of all tasks, tied tensors twice, a buffer, and a config.json without its defaults."""
    spec, task = registry.family(family).PUBLISHED, families.main_task(family)
    tensors: dict[str, np.ndarray] = {}
    prefix = lambda task: spec.prefixes.get(task, spec.prefix)
    written = lambda name: name[1:] if name.startswith("/") else prefix(task) + name
    for other in (task, *(name for name in spec.tasks if name not in ("base", task))):
        save_pretrained(tmp_path / other, random(family, other))
        for name, x in safetensors.read_folder(tmp_path / other).items():
            if name.removeprefix(prefix(other)) not in {have.removeprefix(prefix(task)) for have in tensors}:
                tensors[name] = np.asarray(x)
    if getattr(families.small(family), "tied", True):
        tensors |= {alias: tensors[written(name)] for alias, name in spec.tied.items()}
    if any(re.fullmatch(pattern, "embeddings.position_ids") for pattern, _ in spec.ignored):
        tensors[spec.prefix + "embeddings.position_ids"] = np.arange(24)[None]
    settings = json.loads((tmp_path / task / "config.json").read_text())
    usual = [key for key, value in spec.key_defaults.items() if key != "model_type" and settings.get(key) == value]
    (tmp_path / "old").mkdir()
    safetensors.write_folder(tmp_path / "old", tensors)
    said = {key: settings[key] for key in settings if key not in (*usual, "dtype", "id2label", "label2id")}
    (tmp_path / "old" / "config.json").write_text(json.dumps(said | {"output_past": True}))
    assert usual
    assert_same(random(family, task), from_pretrained(tmp_path / "old"))


NESTED = [(family, kind) for family in registry.families() for kind in registry.family(family).PUBLISHED.nested]


@pytest.mark.parametrize(("family", "kind"), NESTED)
def test_the_model_of_text_in_one_of_images_and_text(tmp_path: Path, family: str, kind: str):
    """Its settings are under `text_config`, its tensors have another prefix, and the others are not read."""
    spec, fresh = registry.family(family).PUBLISHED, random(family, "causal-lm")
    save_pretrained(tmp_path / "text", fresh)
    tensors = {
        name.replace(spec.prefix, prefix, 1) if name.startswith(spec.prefix) else name: np.asarray(x)
        for prefix in spec.other_prefixes
        for name, x in safetensors.read_folder(tmp_path / "text").items()
    }
    assert not any(name in tensors for name in safetensors.read_folder(tmp_path / "text") if name != "lm_head.weight")
    (tmp_path / "both").mkdir()
    ignored = [pattern for pattern, _ in spec.ignored]  # such as `(vision|audio)_tower\\..*`
    modules = [re.sub(r"\((\w+)\|.*?\)", r"\1", pattern).removesuffix(r"\..*") for pattern in ignored]
    unread = spec.unread(fresh.config)
    whole = [sign.removesuffix(r"\..*") for _, sign, _ in unread if sign.endswith(r"\..*")]  # modules of their own
    modules = [*(f"model.{module}" for module in modules), *whole]
    others = {f"{module}.blocks.0.norm1.weight": np.ones(4) for module in modules}
    safetensors.write_folder(tmp_path / "both", tensors | others)
    text = json.loads((tmp_path / "text" / "config.json").read_text())
    old = next(old for old, now in spec.renamed_classes.items() if now == text["architectures"][0])
    settings = {"architectures": [old], "model_type": kind, "vision_config": {"hidden_size": 8}}
    settings["tie_word_embeddings"] = text.pop("tie_word_embeddings")
    config = tmp_path / "both" / "config.json"
    config.write_text(json.dumps(settings | {"text_config": text}))
    with pytest.warns(UserWarning, match=f"is a {kind}: only its model of text is read") as told:
        assert_same(fresh, from_pretrained(tmp_path / "both"))
    for *_, what in unread:
        assert sum(f"holds {what}, which is not read" in str(warning.message) for warning in told) == 1
    lacks = {key: value for key, value in text.items() if key not in spec.nested[kind]}
    config.write_text(json.dumps(settings | {"text_config": lacks}))
    with pytest.warns(UserWarning):
        assert config_map.read_file(tmp_path / "both").items() >= spec.nested[kind].items()
    config.write_text(json.dumps(settings | {"text_config": [1]}))
    with pytest.raises(ValueError, match="text_config is a list.*, where an object with the model of text is expected"):
        from_pretrained(tmp_path / "both")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_saved_in_the_dtype_of_the_parameters(saved: Path, tmp_path: Path, dtype: str):
    with jax.enable_x64(dtype == "float64"):
        one = from_pretrained(saved, dtype=dtype, param_dtype=dtype)
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b.astype(dtype)), one.params, made().params))
        save_pretrained(tmp_path / "again", one)
        assert_same(one, from_pretrained(tmp_path / "again", dtype=dtype, param_dtype=dtype))
    assert {x.dtype for x in safetensors.read_folder(tmp_path / "again").values()} == {jnp.dtype(dtype)}
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("family", {case.task: case.family for case in families.cases()}.values())
def test_mesh_changes_where_parameters_lie_and_nothing_else(tmp_path: Path, family: str):
    alone, mesh = random(family, families.main_task(family)), sharding.make_mesh(data=2, fsdp=2, tensor=2)
    places = sharding.param_shardings(registry.param_shapes(alone.model), mesh)
    spread = alone.replace(params=jax.device_put(jax.tree.map(np.asarray, alone.params), places))
    save_pretrained(tmp_path, spread)
    loaded = from_pretrained(tmp_path, mesh=mesh)
    assert_same(spread, loaded)
    assert_same(spread, from_pretrained(tmp_path))
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), loaded.params, places))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(loaded.params))


def test_fresh_parameters_are_the_same_on_a_mesh():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    alone, spread = made(), made(mesh=mesh)
    # Compilers round the same random numbers differently for other shapes (those near zero are differences of larger
    # ones); what is loaded is the same to the bit.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), alone.params, spread.params)
    places = sharding.param_shardings(registry.param_shapes(spread.model), mesh)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), spread.params, places))


PROCESS = """
import sys, jax
rank, port, folder, tiny = int(sys.argv[1]), sys.argv[2], sys.argv[3], eval(sys.argv[4])
jax.distributed.initialize(f"localhost:{port}", 2, rank)
from transformer_zoo import sharding
from transformer_zoo.pretrained import from_config, from_pretrained, save_pretrained
mesh = sharding.make_mesh(fsdp=2, tensor=2)
made = from_config("gpt2", tiny, mesh=mesh)
assert not made.params["blocks"]["mlp_up"]["kernel"].is_fully_addressable
save_pretrained(folder, made)
loaded = from_pretrained(folder, mesh=mesh)
assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), made.params, loaded.params))
save_pretrained(folder + "/again", loaded)
"""


def test_two_processes_save_and_load_together(tmp_path: Path):
    """Each holds half of every large parameter, and reads and writes as one process would."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count=2 {QUICKLY}"
    arguments = (str(port), str(tmp_path / "two"), repr(TINY["gpt2"]))
    pair = [
        processes.Process(processes.run, PROCESS, str(rank), *arguments, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
        for rank in range(2)
    ]
    try:
        for process in pair:
            said = process.communicate(timeout=200)[0]
            assert process.returncode == 0, said[-2000:]
    finally:
        for process in pair:
            process.kill()
    again = content(tmp_path / "two" / "again")
    assert again == {name: (tmp_path / "two" / name).read_bytes() for name in again}
    loaded = from_pretrained(tmp_path / "two")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), loaded.params, made().params)
    save_pretrained(tmp_path / "one", loaded)
    assert content(tmp_path / "one") == again


def test_the_main_task_is_the_default():
    assert made().model.task == "causal-lm"


def test_seed():
    one, two, other = made(seed=3), made(seed=3), made(seed=4)
    assert_same(one, two)
    table = [x.params["token_embed"]["embedding"] for x in (one, other)]
    assert not np.any(table[0][:90] == table[1][:90])


def test_the_three_ways_to_give_a_config():
    config = registry.family("gpt2").Config(
        vocab_size=90, max_length=24, width=16, num_layers=3, num_heads=2, mlp_dim=40, eos_id=7
    )
    assert_same(from_config("gpt2", config), made())
    found = []
    jax.eval_shape(lambda: found.append(from_config("gpt2", "distilgpt2").config))  # traced only: it is large
    assert found == [registry.presets()["distilgpt2"].config]


def test_dtype_is_that_of_the_computation():
    bundle = made(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(bundle.params)} == {np.dtype("float32")}
    out = jax.eval_shape(bundle.model.apply, {"params": bundle.params}, jnp.ones((1, 4), jnp.int32))
    assert out.hidden_BTD.dtype == jnp.bfloat16


def test_body_without_prefix_serves_a_tied_language_model(tmp_path: Path):
    body = made(task="base")
    save_pretrained(tmp_path, body)
    assert "wte.weight" in safetensors.read_folder(tmp_path)
    loaded = from_pretrained(tmp_path, task="causal-lm")
    assert loaded.model.task == "causal-lm" and trees.flatten(loaded.params).keys() == trees.flatten(body.params).keys()
    edit(tmp_path, tie_word_embeddings=False)
    with pytest.warns(UserWarning, match="has no head/embedding: fresh"):
        assert from_pretrained(tmp_path, task="causal-lm").fresh == ("head/embedding",)


def test_a_head_that_a_checkpoint_lacks_is_fresh_and_named(tmp_path: Path):
    """As the paper initialises it, by the seed; but not if the checkpoint should have it, nor for the body."""
    save_pretrained(tmp_path, made("bert", "masked-lm"))
    names = ("head/scores/bias", "head/scores/kernel", "pooler/dense/bias", "pooler/dense/kernel")
    with pytest.warns(UserWarning, match=f"has no {', '.join(names)}: fresh"):
        one = from_pretrained(tmp_path, task="sequence-classification", labels=("bad", "so-so", "good"), seed=1)
    assert one.fresh == names and one.config.labels == ("bad", "so-so", "good")
    assert one.params["head"]["scores"]["kernel"].shape == (16, 3) and one.params["head"]["scores"]["kernel"].any()
    with pytest.warns(UserWarning, match="fresh"):
        mesh = sharding.make_mesh(tensor=2, devices=jax.devices()[:2])
        two = from_pretrained(tmp_path, task="sequence-classification", labels=3, seed=1, mesh=mesh)
    assert two.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2") and not families.difference(two.params, one.params)

    save_pretrained(tmp_path / "judge", one)
    same = from_pretrained(tmp_path / "judge")
    assert same.fresh == () and same.config == one.config
    with pytest.warns(UserWarning, match="has no head/scores/bias, head/scores/kernel: fresh"):
        assert from_pretrained(tmp_path / "judge", labels=5).params["head"]["scores"]["kernel"].shape == (16, 5)
    tensors = {name: np.asarray(x) for name, x in safetensors.read_folder(tmp_path / "judge").items()}
    (tmp_path / "judge" / "model.safetensors").unlink()
    safetensors.write_folder(tmp_path / "judge", {name: x for name, x in tensors.items() if name != "classifier.bias"})
    with pytest.raises(ValueError, match=r"missing:  classifier.bias  \(for head/scores/bias\)"):
        from_pretrained(tmp_path / "judge")
    with pytest.raises(ValueError, match="pegasus has no task with labels"):
        save_pretrained(tmp_path / "pegasus", made("pegasus"))
        from_pretrained(tmp_path / "pegasus", labels=2)


def test_untied_head_is_saved_and_left_out_by_the_body(tmp_path: Path):
    untied = from_config("gpt2", TINY["gpt2"] | {"tie_word_embeddings": False})
    save_pretrained(tmp_path, untied)
    np.testing.assert_array_equal(
        safetensors.read_folder(tmp_path)["lm_head.weight"], untied.params["head"]["embedding"][:90]
    )
    assert_same(untied, from_pretrained(tmp_path))
    assert "head" not in from_pretrained(tmp_path, task="base").params


def test_any_tree_of_the_parameters_shape_can_be_written(tmp_path: Path):
    """Such as gradients, each tensor in its own dtype."""
    bundle = made()
    params = jax.tree.map(lambda x: np.asarray(x, np.float64) / 3, bundle.params)
    params["final_norm"]["bias"] = np.ones(16, np.float16)
    save_pretrained(tmp_path, dataclasses.replace(bundle, params=params))
    tensors = safetensors.read_folder(tmp_path)
    assert tensors.pop("transformer.ln_f.bias").dtype == np.float16
    assert {x.dtype for x in tensors.values()} == {np.dtype("float64")}
    assert "dtype" not in json.loads((tmp_path / "config.json").read_text())
    np.testing.assert_array_equal(tensors["transformer.wpe.weight"], params["position_embed"]["embedding"])


def test_files_of_two_tokenizers_do_not_mix(tmp_path: Path):
    bundle = made().replace(tokenizer=Tokenizer.train(["to be or not to be"], 270))
    save_pretrained(tmp_path, bundle)
    save_pretrained(tmp_path, bundle.replace(tokenizer=Tokenizer.train(["or be"], 270, kind="roberta")))
    own = from_pretrained(tmp_path).tokenizer
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": own.vocab_size}))
    before = content(tmp_path)
    with pytest.raises(ValueError, match="files of another tokenizer.* added_tokens.json: name another folder, or"):
        save_pretrained(tmp_path, bundle)
    assert content(tmp_path) == before
    save_pretrained(tmp_path, from_pretrained(tmp_path))
    save_pretrained(tmp_path, bundle, overwrite=True)
    assert from_pretrained(tmp_path).tokenizer.fingerprint == bundle.tokenizer.fingerprint
    assert not (tmp_path / "added_tokens.json").exists()


def test_another_model_is_not_replaced_unasked(tmp_path: Path):
    """The same one is, in another precision and in shards too."""
    tokenizer = Tokenizer.train(["to be or not to be"], 270).with_chat_template("{{ messages }}", "x.jinja")
    m = made().replace(tokenizer=tokenizer)
    save_pretrained(tmp_path, m)
    (tmp_path / "README.md").write_text("mine")
    half = m.replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), m.params))
    for same, settings in ((half, {"max_shard_bytes": 9000}), (m.replace(tokenizer=None), {}), (m, {})):
        save_pretrained(tmp_path, same, **settings)
    before = content(tmp_path)
    config = json.loads(before["config.json"])
    deeper = from_config("gpt2", dataclasses.replace(m.config, num_layers=m.config.num_layers + 1))
    other = from_config("bert", families.small("bert"), task="sequence-classification")
    remedy = "name another folder, or pass overwrite=True to replace it"
    for another, message in (
        (deeper, f"with n_layer {m.config.num_layers}: {remedy}"),
        (from_config("gpt2", m.config, task="base"), r'with architectures \["GPT2LMHeadModel"\]: name'),
        (other, r"with activation_function .* and \d+ more that differ: name"),
    ):
        with pytest.raises(ValueError, match=f"{tmp_path} holds a model that is another one .*{message}"):
            save_pretrained(tmp_path, another)
    spelled = {key: x for key, x in config.items() if key != "problem_type"}
    spelled |= {"transformers_version": "5.0", "use_cache": True}
    (tmp_path / "config.json").write_text(json.dumps(spelled))
    save_pretrained(tmp_path, m)
    (tmp_path / "config.json").write_text(json.dumps(spelled | {"n_head": "two"}))
    with pytest.raises(ValueError, match='is another one or was not written here, with n_head "two"'):
        save_pretrained(tmp_path, m)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="holds model.safetensors, and no config.json that describes them: name"):
        save_pretrained(tmp_path, m)
    (tmp_path / "config.json").write_bytes(before["config.json"])
    assert content(tmp_path) == before

    (tmp_path / "pytorch_model.bin").touch()
    save_pretrained(tmp_path, other, overwrite=True)
    assert {*content(tmp_path)} == {"README.md", "config.json", "model.safetensors"}
    assert from_pretrained(tmp_path).config == other.config


def test_padding_of_a_family_is_not_that_of_any_tokenizer(tmp_path: Path):
    """MPNet's is token 1, which no setting changes: with another one saved, nothing could read the folder."""
    sizes = {"vocab_size": 90, "max_length": 12, "width": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    m = families.made("mpnet", registry.family("mpnet").Config(**sizes), task="base")
    with pytest.warns(
        UserWarning, match="pad_token_id of the tokenizer is 0, and that of every mpnet is 1, which is saved"
    ):
        save_pretrained(tmp_path, m.replace(tokenizer=Tokenizer.train(["to be or not"], 80, kind="wordpiece")))
    assert from_pretrained(tmp_path).config == m.config


INPUTS = ["input_ids", "attention_mask"]


class FakeTokenizer:
    bos_id, eos_id, pad_id = 7, 7, None

    def __init__(self, fails: bool = False):
        self.fails = fails

    def save(self, folder: Path, settings: dict[str, Any]) -> None:
        if self.fails:
            raise OSError(28, "No space left on device")
        (folder / "tokenizer.json").write_text("{}")


def test_tokenizer_is_saved_beside_the_weights(tmp_path: Path):
    save_pretrained(tmp_path, dataclasses.replace(made(), tokenizer=FakeTokenizer()))
    assert sorted(content(tmp_path)) == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    settings = json.loads((tmp_path / "config.json").read_text())
    assert (settings["bos_token_id"], settings["eos_token_id"], settings["pad_token_id"]) == (7, 7, None)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings == {"bos_token_id": 7, "eos_token_id": 7}


def test_tokenizer_is_loaded_from_the_same_folder(tmp_path: Path):
    tokenizer = Tokenizer.train(["to be or not to be"], 270)
    save_pretrained(tmp_path, dataclasses.replace(made(), tokenizer=tokenizer))
    loaded = from_pretrained(tmp_path).tokenizer
    np.testing.assert_array_equal(loaded.encode("or not").ids, tokenizer.encode("or not").ids)
    assert loaded.eos_id == tokenizer.eos_id is not None


@pytest.mark.parametrize(
    ("family", "num_segments", "length", "inputs"),
    [
        ("bert", 2, 12, ["input_ids", "token_type_ids", "attention_mask"]),
        ("roberta", 1, 12, INPUTS),
        ("distilbert", None, 12, INPUTS),
        ("t5", None, None, INPUTS),
    ],
)
def test_other_libraries_give_a_model_its_inputs(
    family: str, num_segments: int | None, length: int | None, inputs: list[str]
):
    """By tokenizer_config.json: the types of tokens where a model tells them apart, and the length where it has one."""
    kind = registry.family(family).Config
    sizes = {"vocab_size": 90, "max_length": length, "num_segments": num_segments, "eos_id": 1}
    sizes = {name: size for name, size in sizes.items() if size is not None and name in kind.__dataclass_fields__}
    settings = {"model_input_names": inputs, "model_max_length": length}
    if length is None:
        del settings["model_max_length"]
    assert pretrained._tokenizer_settings(kind(**sizes)) == settings


def test_no_tokenizer(saved: Path):
    assert from_pretrained(saved).tokenizer is None


# ---- what cannot be loaded -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt-2"}, "config.json: model_type 'gpt-2' is not read: .*gpt2.* Did you mean 'gpt2'"),
        ({"model_type": "absent"}, 'no model_type: give the family. Its architecture GPT2LMHeadModel .* family="gpt2"'),
        ({"architectures": ["GPT2DoubleHeadsModel"]}, "'GPT2DoubleHeadsModel': give the task.*base"),
        ({"architectures": "absent"}, "names no architectures: give the task.*causal-lm .GPT2LMHeadModel."),
        ({"n_embd": "absent"}, "n_embd is missing"),
        ({"n_embd": "16"}, "n_embd is '16', which is not int"),
        ({"n_head": 3}, "num_heads=3 does not divide width=16"),
        ({"activation_function": "gelu_newer"}, "gelu_newer"),
        ({"add_cross_attention": True}, "add_cross_attention is True; only False is supported"),
        ({"vocab_size": 91}, r"misshapen:  transformer.wte.weight  \[90, 16\], expected \[91, 16\]"),
        ({"n_layer": 4}, "missing:  transformer.h.3.ln_1.weight"),
        ({"n_layer": 2}, "unexpected:  transformer.h.2.ln_1.weight"),
        ({"n_inner": 41}, r"transformer.h.0.mlp.c_fc.weight  \[16, 40\], expected \[16, 41\]"),
        ({"tie_word_embeddings": False}, "missing:  lm_head.weight"),
    ],
)
def test_config_that_does_not_fit(saved: Path, changes: dict[str, Any], message: str):
    edit(saved, **changes)
    before = content(saved)
    with pytest.raises(ValueError, match=message) as caught:
        from_pretrained(saved)
    assert str(saved) in str(caught.value)
    assert content(saved) == before


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "a list of 0"), ("\xff", "UTF-8")])
def test_config_that_is_no_json(saved: Path, text: str, message: str):
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"config.json is .*{message}"):
        from_pretrained(saved)


def test_folder_without_config_or_weights(saved: Path):
    (saved / "model.safetensors").rename(saved / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no weights that can be read.*It holds weights.safetensors"):
        from_pretrained(saved)
    (saved / "weights.safetensors").rename(saved / "tf_model.h5")
    with pytest.raises(FileNotFoundError, match=r"model.safetensors.*pytorch_model.bin.*It holds tf_model.h5.*convert"):
        from_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        from_pretrained(saved)


def test_truncated_weights(saved: Path):
    with (saved / "model.safetensors").open("r+b") as stream:
        stream.truncate(10_000)
    with pytest.raises(ValueError, match="truncated"):
        from_pretrained(saved)


@pytest.mark.parametrize("load", [lambda folder, **k: from_pretrained(folder, **k),
                                  lambda folder, **k: from_config("gpt2", TINY["gpt2"], **k)])  # fmt: skip
def test_settings_that_do_not_exist(saved: Path, load: Any):
    with pytest.raises(ValueError, match="gpt2 has no task 'causal_lm': it offers base, causal-lm.* mean 'causal-lm'"):
        load(saved, task="causal_lm")
    with pytest.raises(ValueError, match="dtype is 'bf16': choose one of float32, bfloat16"):
        load(saved, dtype="bf16")
    with pytest.raises(ValueError, match="JAX_ENABLE_X64=1"):
        load(saved, dtype="float64")
    with pytest.raises(ValueError, match="jax_enable_x64"):
        load(saved, param_dtype="float64")
    with pytest.raises(ValueError, match="mesh axes .'model'. are not known"):
        load(saved, mesh=jax.make_mesh((8,), ("model",)))


def test_mesh_that_does_not_divide(saved: Path):
    with pytest.raises(ValueError, match="does not divide"):
        from_pretrained(saved, mesh=sharding.make_mesh(tensor=8))  # two heads
    with pytest.raises(ValueError, match="does not divide"):
        from_config("gpt2", TINY["gpt2"], mesh=sharding.make_mesh(tensor=8))


@pytest.mark.parametrize(
    ("family", "config", "error", "message"),
    [
        ("gtp2", {}, ValueError, "no family 'gtp2'.* Did you mean 'gpt2'"),
        ("gpt2", "gpt2-lage", ValueError, "gpt2 has no preset 'gpt2-lage': it has gpt2, .* Did you mean 'gpt2-large'"),
        ("gpt2", {"n_embd": 16}, ValueError, "vocab_size is missing"),
        ("gpt2", {"model_type": "bert"}, ValueError, "the model_type 'bert', and gpt2 reads 'gpt2'"),
        ("gpt2", 12, TypeError, "not from 12"),
    ],
)
def test_configs_that_are_none(family: str, config: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        from_config(family, config)


# ---- what cannot be saved --------------------------------------------------------------------------------------------


def test_parameters_of_another_model_are_not_saved(saved: Path):
    before = content(saved)
    bundle = made()
    flat = trees.flatten(bundle.params)
    del flat["final_norm/bias"]
    flat["position_embed/embedding"] = flat["position_embed/embedding"][:-1]
    flat["blocks/extra/kernel"] = np.ones(3)
    with pytest.raises(ValueError) as caught:
        save_pretrained(saved, dataclasses.replace(bundle, params=trees.unflatten(flat)))
    for line in (
        "final_norm/bias  missing, expected (16,)",
        "position_embed/embedding  (23, 16), expected (24, 16)",
        "blocks/extra/kernel  (3,), expected nothing",
    ):
        assert line in str(caught.value)
    assert content(saved) == before


def test_full_disk(saved: Path):
    """The disk is full at the weights, and then at the tokenizer: the old files are unchanged, and no others are
    left."""
    before = content(saved)
    bundle = made(seed=5)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="old files are unchanged"):
            save_pretrained(saved, bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(saved) == before
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(saved, dataclasses.replace(bundle, tokenizer=FakeTokenizer(fails=True)))
    assert content(saved) == before
    assert_same(from_pretrained(saved), made())


def test_config_json_is_complete(saved: Path):
    """Our config.json has every key, so that no reader needs a default."""
    settings = config_map.read_file(saved)
    assert {key.name for key in registry.family("gpt2").PUBLISHED.config.values()} <= settings.keys()


def test_modernbert_old_and_new_forms_of_config():
    """Layers and angles by number, as published, and by kind, as transformers 5 writes them; unsupported settings."""
    module, settings = registry.family("modernbert"), TINY["modernbert"] | {"num_hidden_layers": 5}
    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 7.0}
    kinds = ["full_attention", "sliding_attention"] * 2 + ["full_attention"]
    angles = {"full_attention": {"rope_type": "default", "rope_theta": 500.0}, "sliding_attention": {"rope_theta": 7.0}}
    config = config_map.read(module, settings | old)
    assert (config.global_every, config.global_theta, config.local_theta) == (2, 500.0, 7.0)
    assert config_map.read(module, settings | {"layer_types": kinds, "rope_parameters": angles}) == config
    assert config_map.read(module, settings | old | {"layer_types": kinds[:1] * 5}).global_every == 1
    assert config_map.read(module, config_map.write(module, config, "base")) == config
    for change, message in (
        ({"layer_types": kinds[::-1][1:] + kinds[:1]}, "layer_types is .*every nth one from the first on"),
        ({"layer_types": kinds[:4]}, "layer_types is "),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters of full_attention are .*yarn",
        ),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling is .*; only None is supported"),
        ({"classifier_pooling": "max"}, "head_pooling 'max' is not known: choose one of cls, mean"),
        ({"num_attention_heads": 16}, "heads of the odd size 1"),
        ({"pad_token_id": 90}, "pad_id is 90, outside of the vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            config_map.read(module, settings | change)
