"""The engine that reads and writes published weights, on a made-up family: it knows no families."""

import dataclasses
import json
import types
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from transformer_zoo import sharding, trees
from transformer_zoo.checkpoints import config_map, safetensors, weight_map
from transformer_zoo.published import Key, Published

D, H, K, F, L, V, PADDED = 8, 2, 4, 16, 3, 100, 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int = V
    width: int = D
    layers: int = L
    activation: str = "gelu"
    dropout: float = 0.1
    mlp: int | None = None
    tied: bool = True

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width={self.width} is odd")


TOY = Published(
    model_type="toy",
    class_prefix="Toy",
    classes={"causal-lm": "LM", "sequence-classification": "Classifier"},
    config={
        "vocab_size": Key("vocab_size"),
        "width": Key("hidden_size"),
        "layers": Key("num_hidden_layers"),
        "activation": Key.choice("hidden_act", {"gelu_exact": "gelu", "relu": "relu"}, "gelu_exact"),
        "dropout": Key("hidden_dropout_prob", 0.1),
        "mlp": Key("intermediate_size", None),
        "tied": Key("tie_word_embeddings", True),
    },
    fixed={"position_embedding_type": "absolute"},
    prefix="body.",
    body=(
        ("embed.weight", "embed/embedding", "V D -> V D"),
        ("h.*.norm.weight", "blocks/norm/scale", "D -> D"),
        ("h.*.gate", "blocks/gate", " -> "),
        ("h.*.qkv.weight", "blocks/{query,key,value}/kernel", "D (n H K) -> n D H K"),
        ("h.*.qkv.bias", "blocks/{query,key,value}/bias", "(n H K) -> n H K"),
        ("h.*.out.weight", "blocks/out/kernel", "D (H K) -> H K D"),
        ("norm.weight", "final_norm/scale", "D -> D"),
    ),
    heads={
        "causal-lm": (("lm.weight", "head/embedding", "V D -> V D"), ("lm.bias", "head/bias", "V -> V")),
        "sequence-classification": (
            ("classifier.weight", "classifier/kernel", "C D -> D C"),
            ("old.*.weight", "old/kernel", "D D2 -> D D2"),
        ),
    },
    tied={"lm.weight": "embed.weight", "lm.twin": "/lm.weight"},
    ignored=((r"h\.\d+\.mask", "a buffer"), (r"step", "a counter")),
)


def toy(Config: type = Config, /, **changes: Any) -> Any:
    """The family, with these changes to its `PUBLISHED`."""
    return types.SimpleNamespace(__name__="toy", Config=Config, PUBLISHED=dataclasses.replace(TOY, **changes))


FAMILY: Any = toy()

BODY = {
    "embed/embedding": (PADDED, D),
    "blocks/norm/scale": (L, D),
    "blocks/gate": (L,),
    **{f"blocks/{name}/kernel": (L, D, H, K) for name in ("query", "key", "value")},
    **{f"blocks/{name}/bias": (L, H, K) for name in ("query", "key", "value")},
    "blocks/out/kernel": (L, H, K, D),
    "final_norm/scale": (D,),
}
HEAD = {"head/embedding": (PADDED, D), "head/bias": (PADDED,)}


def theirs(prefix: str = "body.", dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (V, D), "norm.weight": (D,)}
    for i in range(L):
        shapes |= {f"h.{i}.norm.weight": (D,), f"h.{i}.gate": (), f"h.{i}.out.weight": (D, H * K)}
        shapes |= {f"h.{i}.qkv.weight": (D, 3 * H * K), f"h.{i}.qkv.bias": (3 * H * K,)}
    return {prefix + name: np.asarray(rng.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}


def head(seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "lm.weight": rng.normal(size=(V, D)).astype(np.float32),
        "lm.bias": rng.normal(size=(V,)).astype(np.float32),
    }


def load(tensors: dict[str, Any], shapes: dict[str, tuple[int, ...]] = BODY, task: str = "causal-lm", **settings: Any):
    shapes = trees.unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()})
    settings = {"config": Config(), "param_dtype": "float32", **settings}
    return weight_map.load(FAMILY, shapes, tensors, task=task, **settings)


def dump(params: trees.Tree, task: str = "causal-lm", config: Config | None = None) -> dict[str, np.ndarray]:
    exported = weight_map.dump(FAMILY, params, config=config or Config(), task=task)
    made = {name: np.asarray(tensor) for name, tensor in exported.items()}
    assert all(exported[k].shape == x.shape and exported[k].dtype == x.dtype for k, x in made.items())
    return made


def assert_identical(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def test_parts_of_several_sizes_lie_one_after_another():
    """A projection with fewer heads of keys and values than of queries, in one tensor."""
    family = toy(body=tuple(row for row in TOY.body if "{" not in row[1]) + (
        ("h.*.qkv.weight", "blocks/{query,key,value}/kernel", "D (n H K) -> n D H K"),
    ))  # fmt: skip
    shapes = {path: shape for path, shape in BODY.items() if "bias" not in path and "kernel" not in path}
    shapes |= {
        "blocks/query/kernel": (L, D, 4, K),
        "blocks/key/kernel": (L, D, 2, K),
        "blocks/value/kernel": (L, D, 2, K),
    }
    draw = np.random.default_rng(0)
    params = trees.unflatten({path: draw.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})
    written = weight_map.dump(family, params, config=Config(), task="base")
    one = written["h.1.qkv.weight"]
    assert one.shape == np.asarray(one).shape == (D, 8 * K)
    own = params["blocks"]
    expected = [np.asarray(own[name]["kernel"][1]).reshape(D, -1) for name in ("query", "key", "value")]
    np.testing.assert_array_equal(one, np.concatenate(expected, axis=1))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    settings = {"config": Config(), "task": "base", "param_dtype": "float32"}
    made = {name: np.asarray(x) for name, x in written.items()}
    loaded = weight_map.load(family, like, made, **settings)
    jax.tree.map(np.testing.assert_array_equal, loaded["blocks"], own)
    with pytest.raises(ValueError, match=r"h\.0\.qkv\.weight  \[5, 5\], expected \[" + f"{D}, {8 * K}"):
        weight_map.load(family, like, made | {"h.0.qkv.weight": np.zeros((5, 5), np.float32)}, **settings)


def test_parts_of_several_sizes_lie_one_after_another_in_each_group():
    """Heads by groups: the queries, the key and the value of the first, then those of the second, as in Falcon."""
    layout = ("h.*.qkv.weight", "{query,key,value}/kernel", "(G=2 n Q K) D -> n D (G Q) K")
    shapes = {"query/kernel": (L, D, 4, K), "key/kernel": (L, D, 2, K), "value/kernel": (L, D, 2, K)}
    family = toy(body=(layout,), heads={}, tied={})
    draw = np.random.default_rng(0)
    own = trees.unflatten({path: draw.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})
    written = weight_map.dump(family, own, config=Config(), task="base")
    query, key, value = (np.moveaxis(own[name]["kernel"][1], 0, -1) for name in ("query", "key", "value"))  # [H, K, D]
    expected = np.stack([*query[:2], key[0], value[0], *query[2:], key[1], value[1]]).reshape(8 * K, D)
    np.testing.assert_array_equal(written["h.1.qkv.weight"], expected)
    assert written["h.1.qkv.weight"].shape == expected.shape
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), own)
    made = {name: np.asarray(x) for name, x in written.items()}
    loaded = weight_map.load(family, like, made, config=Config(), task="base", param_dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, loaded, own)


def test_layers_without_a_tensor():
    """They get the values of a fresh norm and are not written; a tensor for them is unexpected."""
    table = [(theirs.replace("h.*.norm", "h.*[2:].norm"), *row) for theirs, *row in TOY.body]
    family = toy(body=tuple(table))
    shapes = trees.unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in BODY.items()})
    how = {"config": Config(), "task": "causal-lm"}
    tensors = theirs()
    with pytest.raises(ValueError, match=r"unexpected:  body.h.0.norm.weight\n  unexpected:  body.h.1.norm.weight\n"):
        weight_map.load(family, shapes, tensors, **how, param_dtype="float32")
    for layer in range(2):
        del tensors[f"body.h.{layer}.norm.weight"]
    params = weight_map.load(family, shapes, tensors, **how, param_dtype="float32")
    scales_LD = params["blocks"]["norm"]["scale"]
    assert (scales_LD[:2] == 1).all()
    np.testing.assert_array_equal(scales_LD[2], tensors["body.h.2.norm.weight"])
    exported = weight_map.dump(family, params, **how)
    assert_identical({name: np.asarray(x) for name, x in exported.items()}, tensors)


def test_layouts_by_hand():
    tensors = theirs()
    params = trees.flatten(load(tensors))
    assert {path: x.shape for path, x in params.items()} == BODY
    for i in range(L):
        q, k, v = np.split(tensors[f"body.h.{i}.qkv.weight"], 3, axis=1)
        for name, x in (("query", q), ("key", k), ("value", v)):
            np.testing.assert_array_equal(params[f"blocks/{name}/kernel"][i], x.reshape(D, H, K))
        np.testing.assert_array_equal(
            params["blocks/out/kernel"][i], tensors[f"body.h.{i}.out.weight"].T.reshape(H, K, D)
        )
        np.testing.assert_array_equal(params["blocks/gate"][i], tensors[f"body.h.{i}.gate"])
    np.testing.assert_array_equal(params["embed/embedding"][:V], tensors["body.embed.weight"])
    assert not np.any(params["embed/embedding"][V:])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_export_of_import_is_identical_to_the_byte(dtype: str):
    with jax.enable_x64(dtype == "float64"):
        tensors = theirs(dtype=jnp.dtype(dtype))
        tensors["body.norm.weight"][:4] = [np.nan, -0.0, np.inf, jnp.finfo(dtype).smallest_subnormal]
        assert_identical(dump(load(tensors, param_dtype=dtype)), tensors)


def test_names_bear_the_prefix_unless_the_task_is_base():
    body = load(theirs(prefix=""), task="base")
    assert_identical(dump(body, task="base"), theirs(prefix=""))
    assert_identical(dump(body, task="causal-lm"), theirs())
    assert_identical(dump(load(theirs(), task="base"), task="base"), theirs(prefix=""))


def test_untied_head_is_outside_of_the_prefix():
    tensors = theirs() | head()
    params = load(tensors, BODY | HEAD, config=Config(tied=False))
    np.testing.assert_array_equal(params["head"]["embedding"][:V], tensors["lm.weight"])
    np.testing.assert_array_equal(params["head"]["bias"], np.pad(tensors["lm.bias"], (0, PADDED - V)))
    assert_identical(dump(params, config=Config(tied=False)), tensors)
    with pytest.raises(
        ValueError, match=r"(?s)missing:  lm.weight  \(for head/embedding\).*unexpected:  body.lm.weight"
    ):
        load(theirs() | {"body.lm.weight": head()["lm.weight"], "lm.bias": head()["lm.bias"]}, BODY | HEAD,
             config=Config(tied=False))  # fmt: skip


def test_dtype_is_cast():
    params = load(theirs(dtype=ml_dtypes.bfloat16), param_dtype="float32")
    np.testing.assert_array_equal(params["final_norm"]["scale"], theirs(dtype=ml_dtypes.bfloat16)["body.norm.weight"])
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(load(theirs(), param_dtype="bfloat16"))} == {jnp.dtype("bfloat16")}


def test_any_tree_of_the_shapes_is_written_in_its_own_dtypes():
    tree = jax.tree.map(np.asarray, load(theirs()))
    tree["final_norm"]["scale"] = np.arange(D, dtype=np.float64)  # gradients in float64, say
    written = dump(tree)
    assert written["body.norm.weight"].dtype == np.float64
    assert_identical({k: x for k, x in written.items() if k != "body.norm.weight"},
                     {k: x for k, x in theirs().items() if k != "body.norm.weight"})  # fmt: skip


# ---- sharding --------------------------------------------------------------------------------------------------------

SPECS = {
    "embed/embedding": PartitionSpec("tensor", "fsdp"),
    "blocks/query/kernel": PartitionSpec(None, "fsdp", "tensor"),
    "blocks/out/kernel": PartitionSpec(None, "tensor", None, "fsdp"),
    "final_norm/scale": PartitionSpec(("data", "fsdp", "tensor")),
}


def test_sharded_parameters_are_the_same():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    shardings = {path: NamedSharding(mesh, SPECS.get(path, PartitionSpec())) for path in BODY}
    params = load(theirs(), shardings=trees.unflatten(shardings))
    for path, x in trees.flatten(params).items():
        assert x.sharding == shardings[path]
        np.testing.assert_array_equal(x, trees.flatten(load(theirs()))[path])
    assert_identical(dump(params), theirs())


def test_vocabulary_sharded_where_a_device_has_padding_only():
    mesh = sharding.make_mesh(tensor=8)  # 16 rows each; the last device's are all padding
    spec = {path: NamedSharding(mesh, PartitionSpec("tensor") if path.startswith("embed") else PartitionSpec())
            for path in BODY}  # fmt: skip
    table = load(theirs(), shardings=trees.unflatten(spec))["embed"]["embedding"]
    assert not np.any(table.addressable_shards[-1].data) and table.addressable_shards[-1].data.shape == (16, D)
    np.testing.assert_array_equal(table[:V], theirs()["body.embed.weight"])


def test_only_the_slices_of_the_devices_are_read_and_each_once():
    """One parameter, divided by four and held twice: four reads, which together cover it once."""
    mesh = sharding.make_mesh(data=2, fsdp=4)
    reads = []

    class Spy(np.ndarray):
        def __getitem__(self, index):
            if isinstance(index, tuple):
                reads.append(index)
            return np.asarray(self)[index]

    tensor = np.arange(8.0 * 4, dtype=np.float32).reshape(8, 4)
    array = weight_map._put(
        {(): lambda: tensor.view(Spy)}, 0, (8, 4), np.dtype("float32"), NamedSharding(mesh, PartitionSpec("fsdp"))
    )
    np.testing.assert_array_equal(array, tensor)
    assert sorted((index[0].start, index[0].stop) for index in reads) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_lazy_tensors_are_opened_one_at_a_time(tmp_path):
    """Not those of a whole parameter: of quantised ones that would be more than the parameter."""
    open_now: set[int] = set()
    most = [0]

    class Lazy:
        def __init__(self, array: np.ndarray):
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def __array__(self, dtype=None, copy=None):
            view = self.array.copy()
            open_now.add(id(view))
            weakref.finalize(view, open_now.discard, id(view))
            most[0] = max(most[0], len(open_now))
            return view

    load({name: Lazy(x) for name, x in theirs().items()})
    assert 0 < most[0] <= 2  # this one, and the one before until it is replaced
    assert not open_now


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_one_error_lists_everything():
    tensors = theirs() | {"extra.weight": np.ones(3), "body.h.3.norm.weight": np.ones(D)}
    del tensors["body.h.1.qkv.bias"], tensors["body.norm.weight"]
    tensors["body.h.2.out.weight"] = np.ones((D, 3), np.float32)
    tensors["body.h.0.gate"] = np.asarray(1, np.int8)
    tensors["embed.weight"] = tensors["body.embed.weight"]
    with pytest.raises(ValueError) as caught:
        load(tensors, source="somewhere")
    message = str(caught.value)
    for line in (
        "somewhere does not fit toy for the task 'causal-lm':",
        "missing:  body.h.1.qkv.bias  (for blocks/{query,key,value}/bias)",
        "missing:  body.norm.weight  (for final_norm/scale)",
        "unexpected:  extra.weight",
        "unexpected:  body.h.3.norm.weight",  # a layer too many
        "misshapen:  body.h.2.out.weight  [8, 3], expected [8, 8] (D (H K))",
        "not of floating point:  body.h.0.gate  int8",
        "there twice:  body.embed.weight and embed.weight  (for embed/embedding)",
    ):
        assert line in message
    assert len(message.splitlines()) == 9


def test_long_lists_are_counted():
    with pytest.raises(ValueError) as caught:
        load({f"extra.{i}": np.ones(1) for i in range(1000)})
    assert "unexpected:  and 980 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 50


def test_nothing_is_read_when_something_does_not_fit():
    class Unread:
        shape, dtype = (1,), np.dtype("float32")

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("read")

    with pytest.raises(ValueError, match="misshapen"):
        load({name: Unread() for name in theirs()})


def test_transposed_square_tensor_is_not_noticed_but_every_other_shape_is():
    for name, x in theirs().items():
        if x.ndim == 2 and x.shape[0] != x.shape[1]:
            with pytest.raises(ValueError, match=f"misshapen:  {name}"):
                load(theirs() | {name: x.T})


def test_ignored_tensors_and_those_of_other_heads_are_excused():
    excused = {
        "h.0.mask": np.ones(1),
        "body.h.1.mask": np.ones(1),
        "step": np.ones(1),
        "classifier.weight": np.ones((2, D)),
        "old.7.weight": np.ones((2, D)),
        "lm.bias": np.ones(V),
    }
    assert_identical(dump(load(theirs() | excused)), theirs())
    for name in ("h.x.mask", "steps", "body.classifier.weight", "old.weight", "my.lm.bias"):
        with pytest.raises(ValueError, match=f"unexpected:  {name}"):
            load(theirs() | {name: np.ones(1)})


# ---- tied tensors ----------------------------------------------------------------------------------------------------


def test_tied_tensor_may_be_there_and_is_never_written():
    tensors = theirs()
    assert_identical(dump(load(tensors | {"lm.weight": tensors["body.embed.weight"].copy()})), tensors)


def test_tied_tensor_that_differs_is_an_error():
    tensors = theirs()
    other = tensors["body.embed.weight"].copy()
    other[50, 3] = np.nextafter(other[50, 3], 9)
    for wrong in (other, other[:-1], tensors["body.embed.weight"].astype(np.float64)):
        with pytest.raises(ValueError, match="not the same as embed.weight, to which config.json ties it:  lm.weight"):
            load(tensors | {"lm.weight": wrong})


def test_one_of_the_tied_tensors_is_enough():
    tensors = theirs()
    table = tensors.pop("body.embed.weight")
    assert_identical(dump(load(tensors | {"lm.weight": table})), theirs())
    assert_identical(dump(load(tensors | {"lm.twin": table})), theirs())
    assert_identical(dump(load(tensors | {"lm.weight": table, "lm.twin": table})), theirs())
    with pytest.raises(ValueError, match="not the same.*lm.twin"):
        load(tensors | {"lm.weight": table, "lm.twin": table + 1})


def test_untied_head_of_a_checkpoint_is_another_heads_to_the_body():
    load(theirs() | head(), task="base", config=Config(tied=False))
    with pytest.raises(ValueError, match="not the same as"):
        load(theirs() | head(), task="base", config=Config(tied=True))


def test_another_name_of_an_untied_head():
    """As GPT-NeoX's has in newer files. Both names are one tensor, which is tied to another if one of them is."""
    tensors = theirs() | head()
    renamed = {name.replace("lm.weight", "lm.twin"): x for name, x in tensors.items()}
    untied = {"config": Config(tied=False)}
    assert_identical(dump(load(renamed, BODY | HEAD, **untied), **untied), tensors)
    load(renamed, task="base", **untied)
    with pytest.raises(ValueError, match="not the same as /lm.weight"):
        load(tensors | {"lm.twin": tensors["lm.weight"] + 1}, BODY | HEAD, **untied)


# ---- tables that are wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("x.weight", "final_norm/scale", "D -> D"), "final_norm/scale"),
        (("x.weight", "nowhere/{a,b}", "D -> D"), None),
        (("x.*.weight", "extra/kernel", "D F -> D F"), "does not fit"),
        (("x.weight", "{extra,other}/kernel", "n D F -> n D F"), "does not fit"),
    ],
)
def test_wrong_tables_are_named(row: tuple[str, str, str], message: str | None):
    family = toy(body=(*TOY.body, row))
    shapes = BODY | ({"extra/kernel": (D, F)} if "extra" in row[1] else {})
    tree = trees.unflatten({path: np.zeros(shape) for path, shape in shapes.items()})
    if message is None:
        weight_map.dump(family, tree, config=Config(), task="base")
    else:
        with pytest.raises(ValueError, match=message):
            weight_map.dump(family, tree, config=Config(), task="base")


def test_parameter_without_a_row_is_named():
    with pytest.raises(ValueError, match="not filled by exactly one row of PUBLISHED in toy: blocks/new/kernel"):
        load(theirs(), BODY | {"blocks/new/kernel": (L, D)})


# ---- through a file --------------------------------------------------------------------------------------------------


def test_file_to_file_with_a_mesh(tmp_path):
    mesh = sharding.make_mesh(fsdp=2, tensor=2, data=2)
    shardings = trees.unflatten({path: NamedSharding(mesh, SPECS.get(path, PartitionSpec())) for path in BODY})
    tensors = theirs(dtype=ml_dtypes.bfloat16)
    safetensors.write_folder(tmp_path, tensors, max_shard_bytes=500)
    params = load(safetensors.read_folder(tmp_path), shardings=shardings, param_dtype="bfloat16")
    with safetensors.staged(tmp_path / "out") as folder:
        exported = weight_map.dump(FAMILY, params, config=Config(), task="causal-lm")
        safetensors.write_folder(folder, exported, max_shard_bytes=700)
    again = {name: np.asarray(x) for name, x in safetensors.read_folder(tmp_path / "out").items()}
    assert_identical(again, tensors)


# ---- config.json -----------------------------------------------------------------------------------------------------

SETTINGS = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": L}


def test_config_is_read_with_the_references_defaults():
    assert config_map.read(FAMILY, SETTINGS | {"unrelated": 1}) == Config()
    assert config_map.read(FAMILY, SETTINGS | {"hidden_act": "relu", "hidden_dropout_prob": 0}) == Config(
        activation="relu", dropout=0
    )


@pytest.mark.parametrize("config", [Config(), Config(activation="relu", tied=False, mlp=12, dropout=0.25)])
@pytest.mark.parametrize("task", TOY.tasks)
def test_config_round_trip(config: Config, task: str):
    settings = json.loads(json.dumps(config_map.write(FAMILY, config, task, "bfloat16")))
    assert config_map.read(FAMILY, settings) == config
    assert config_map.task_of(FAMILY, settings) == task
    assert settings["model_type"] == "toy" and settings["dtype"] == "bfloat16"


def test_a_choice_that_no_file_has():
    with pytest.raises(ValueError, match="hidden_act of config.json has no value for 'silu', only for 'gelu', 'relu'"):
        config_map.write(FAMILY, Config(activation="silu"), "base")


def test_config_values_that_are_computed():
    """From their key with all of their settings, defaults included; and back with all of ours."""
    key = Key(
        "intermediate_size", None, lambda n, settings: n // settings["hidden_size"], lambda n, config: n * config.width
    )
    family = toy(config=TOY.config | {"mlp": key})
    config = config_map.read(family, SETTINGS | {"intermediate_size": 3 * D})
    assert config.mlp == 3
    assert config_map.write(family, config, "base")["intermediate_size"] == 3 * D
    with pytest.raises(ValueError, match="intermediate_size is None; unsupported operand"):
        config_map.read(family, SETTINGS)


def test_a_family_of_several_model_types():
    """A model type is written as it was read."""
    several = dataclasses.make_dataclass(
        "Config", [("model_type", str, "toy")], bases=(Config,), frozen=True, kw_only=True
    )
    keys = TOY.config | {"model_type": Key("model_type", "toy")}
    family = toy(several, aliases={"toy-xl": "XLToy"}, config=keys)
    for name, prefix in (("toy", "Toy"), ("toy-xl", "XLToy")):
        config = config_map.read(family, SETTINGS | {"model_type": name})
        settings = config_map.write(family, config, "causal-lm")
        assert (settings["model_type"], settings["architectures"]) == (name, [f"{prefix}LM"])
        assert config_map.task_of(family, settings) == "causal-lm"
    with pytest.raises(ValueError, match="'XLToyLM': give the task. Those of toy are .*(ToyLM)"):
        config_map.task_of(family, settings | {"model_type": "toy"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "swish"}, r"hidden_act is 'swish'; known are 'gelu_exact', 'relu'"),
        ({"hidden_act": ["relu"]}, r"hidden_act is \['relu'\]"),
        ({"hidden_size": "8"}, "hidden_size is '8', which is not int"),
        ({"hidden_size": 8.0}, "hidden_size is 8.0, which is not int"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, which is not int"),
        ({"vocab_size": None}, "vocab_size is None, which is not int"),
        ({"intermediate_size": "x"}, r"intermediate_size is 'x', which is not int \| None"),
        ({"hidden_dropout_prob": True}, "hidden_dropout_prob is True, which is not float"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, which is not bool"),
        ({"hidden_size": 7}, "width=7 is odd"),
        ({"position_embedding_type": "relative_key"}, "is 'relative_key'; only 'absolute' is supported"),
        ({"vocab_size": "x", "hidden_size": "y"}, "vocab_size is 'x'.*hidden_size is 'y'"),
    ],
)
def test_config_that_is_not_supported(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config_map.read(FAMILY, SETTINGS | change)


def test_config_with_a_misspelt_key():
    with pytest.raises(ValueError, match="hidden_size is missing. Did you mean 'hidden_sizes'?"):
        config_map.read(FAMILY, {"vocab_size": V, "hidden_sizes": D, "num_hidden_layers": L})


@pytest.mark.parametrize("architectures", [["BertModel"], [], None, [["x"]], "BertModel"])
def test_architecture_that_nobody_maps(architectures: Any):
    with pytest.raises(ValueError, match="give the task.*base .ToyModel., causal-lm .ToyLM."):
        config_map.task_of(FAMILY, {"architectures": architectures})
