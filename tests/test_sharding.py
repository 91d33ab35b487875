"""Sharding changes no result: on eight simulated devices, over the registry."""

import dataclasses
import functools
import itertools
import math
import re
from typing import Any

import families
import jax
import numpy as np
import pytest
from conftest import tpu_compiler
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, PartitionSpec

from transformer_zoo import fit, registry, sharding, trees
from transformer_zoo.config import Mesh, Optimizer, Training
from transformer_zoo.training import prepare

EXACT = 1e-12
MESHES = {
    "data 8": Mesh(data=8),
    "fsdp 8": Mesh(data=1, fsdp=8),
    "tensor 8": Mesh(data=1, tensor=8),
    "2 x 2 x 2": Mesh(data=2, fsdp=2, tensor=2),
    "data 4 x sequence 2": Mesh(data=4, sequence=2),
}
# The gradient of a key's bias is zero but for rounding, which Adam would blow up to the size of a step: not with this.
ADAMW = Optimizer(weight_decay=0.1, eps=1e-6, ema=0.5)

each = pytest.mark.parametrize("case", families.objective_cases(), ids=families.name_of)


def exact(case: families.Case) -> families.Case:
    """In float64, of two layers, and without dropout, which is another one in each part of a batch."""
    return dataclasses.replace(case.wide(), config=families.without_dropout(case.config)).sized(num_layers=2)


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def compiled_anew():
    """Disables the cache on disk: the partitioner prints its warnings only while it compiles."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def batch_of(case: families.Case, **how: Any) -> dict[str, np.ndarray]:
    return families.BATCHES[case.learns](families.documents(case.config, 8, 16, **how), 16)


def trained(case: families.Case, batch: Any = None, **parts: Any) -> tuple[Any, Any, Any]:
    """(program, state, metrics) after one step."""
    run = families.run(case, **{"optimizer": ADAMW} | parts)
    program, state = families.begin(run, case.params())
    batch = families.place(program, batch_of(case) if batch is None else batch)
    return program, *families.compile_step(program)(state, batch)


def in_parts(case: families.Case, rows: int, accumulation: int) -> dict[str, Any]:
    """Settings of a run that takes a batch in parts, and the logits of each in four chunks."""
    objective = case.objective
    if hasattr(objective, "logits_chunks"):
        objective = dataclasses.replace(objective, logits_chunks=4)
    return {"training": Training(steps=10, batch_size=rows, accumulation=accumulation), "objective": objective}


def assert_same(actual: tuple[Any, Any, Any], expected: tuple[Any, Any, Any]) -> None:
    """Loss, gradient norm and all other metrics; parameters, optimizer state and average."""
    (_, state, metrics), (_, other, others) = actual, expected
    for name in metrics:
        np.testing.assert_allclose(metrics[name], others[name], rtol=EXACT, err_msg=name)
    assert families.difference(state.params, other.params) < EXACT
    assert families.difference(state.ema, other.ema) < EXACT
    assert families.difference(state.opt_state, other.opt_state) < EXACT


# ---- one step on every mesh -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_one_device() -> Any:
    """The result of a step on one device, once for a case."""
    results: dict[families.Case, Any] = {}

    def result(case: families.Case) -> Any:
        if case not in results:
            results[case] = trained(case)
        return results[case]

    return result


ALL = "2 x 2 x 2"
ONE_AXIS = {"masked-lm": ("data 8", "tensor 8"), "causal-lm": ("fsdp 8", "data 4 x sequence 2")}
DOTS, FULL = {"remat": "dots", "unroll": 99}, {"remat": "full"}
KNOBS = {"masked-lm": DOTS, "causal-lm": FULL, "seq2seq-lm": DOTS}


@pytest.mark.parametrize(
    ("case", "mesh"),
    [(case, mesh) for case in families.objective_cases() for mesh in (ALL, *ONE_AXIS.get(case.learns, ()))],
    ids=families.name_of,
)
@pytest.mark.usefixtures("compiled_anew")
def test_a_step_is_the_same_on_every_mesh(
    case: families.Case, mesh: str, on_one_device: Any, capfd: pytest.CaptureFixture[str]
):
    """For every objective; all arrays keep shapes, dtypes and shardings: the new state is the next input of the same
    program. None is gathered whole on the way. On the mesh of all
    axes, the batch comes in two parts, whose documents differ in number and length, the logits of each in four chunks,
    and layers are rematerialised and unrolled."""
    case, sizes = exact(case), MESHES[mesh]
    parts, knobs = (in_parts(case, 8, accumulation=2), KNOBS.get(case.learns, {})) if mesh == ALL else ({}, {})
    program, state, metrics = actual = trained(case.with_(**knobs), mesh=sizes, **parts)
    assert "full rematerialization" not in capfd.readouterr().err
    assert_same(actual, on_one_device(case))
    before = jax.tree.leaves(case.params())
    assert any((np.asarray(x) != y).any() for x, y in zip(jax.tree.leaves(state.params), before))

    assert jax.tree.structure(state) == jax.tree.structure(program.state)
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(program.state), strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    assert {x.dtype for x in jax.tree.leaves((state.params, metrics["loss"]))} == {np.dtype("float64")}
    flat = trees.flatten(state.params)
    for path, axes in trees.match(sharding.PARAM_AXES, flat).items():
        # Written out once more: the product of the mesh's sizes along the axes that the table names.
        rules = [sharding.MESH_RULES[axis] for axis in axes.split()]
        ways = math.prod(getattr(sizes, rule) for rule in rules if isinstance(rule, str))
        assert {shard.data.size for shard in flat[path].addressable_shards} == {flat[path].size // ways}, path
    for name, like in program.batch.items():
        assert like.sharding.shard_shape(like.shape)[0] * sizes.data * sizes.fsdp == like.shape[0], name
    residual = np.zeros((8, 16, 32))
    with jax.set_mesh(program.mesh):
        shape = jax.jit(lambda x: sharding.constrain(x, "batch length _"))(residual).addressable_shards[0].data.shape
    assert shape == (8 // (sizes.data * sizes.fsdp), 16 // sizes.sequence, 32)


# Kinds of layers other than those of the steps above.
STEPS = {families.movements(families.main(case.family)) for case in families.objective_cases() if case.learns in KNOBS}
KINDS = families.kinds([case for case in families.cases() if families.movements(case) not in STEPS], families.movements)


@pytest.mark.parametrize(("case", "knobs"), list(zip(KINDS, itertools.cycle([DOTS, FULL]))), ids=families.name_of)
@pytest.mark.usefixtures("compiled_anew")
def test_gradients_are_the_same_rematerialised_unrolled_and_on_a_mesh(
    case: families.Case, knobs: dict[str, Any], capfd: pytest.CaptureFixture[str]
):
    """For layers of each kind of movements, with padding, and those that use `stack` in another way with dropout; no
    array is gathered whole on the way."""
    if case in families.kinds(KINDS, families.stacking):
        case = dataclasses.replace(case, config=families.small(case.family))
    case = case.sized(num_layers=2).wide()
    params, mesh = case.params(), sharding.make_mesh(**dataclasses.asdict(MESHES[ALL]))
    given = {ids: case.tokens(8, 16) for ids in case.ids}
    given |= {families.MASKS[ids]: np.arange(16) < np.arange(9, 17)[:, None] for ids in case.ids}
    key = jax.random.key(0)

    @functools.partial(jax.jit, static_argnames="model")
    @jax.value_and_grad
    def gradients(params: Any, given: Any, model: Any) -> Any:
        output = model.apply({"params": params}, **given, train=True, rngs={"dropout": key})
        return jax.nn.log_softmax(families.outputs(output))[..., 0].sum()

    expected = gradients(params, given, model=case.model)
    places = sharding.param_shardings(params, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(
            (jax.tree.map(np.array, params), given), (places, sharding.batch_shardings(given, mesh))
        )
        actual = gradients(*placed, model=case.with_(**knobs).model)
    assert "full rematerialization" not in capfd.readouterr().err
    assert families.difference(actual, expected) < EXACT


@pytest.mark.parametrize("family", registry.families())
def test_layers_are_divided_by_heads_and_by_hidden_numbers(family: str):
    """Over the axis `tensor`: the heads of each matrix of attention, the hidden size of each matrix of an MLP. Checked
    by size, not by the table: in a small model all these sizes differ."""
    names = ("num_heads", "num_decoder_heads", "num_kv_heads", "local_kv_heads", "num_delta_key_heads")
    heads = dict.fromkeys(names, 16)
    config = families.sized(families.small(family), width=64, **heads)
    shapes = registry.param_shapes(registry.family(family).Model(config))
    places = trees.flatten(sharding.param_shardings(shapes, sharding.make_mesh(tensor=8)))
    met: set[str] = set()
    matrix = re.compile(
        r".*blocks/(.*(?P<heads>query|key|value|out)|(.*/)?(?P<hidden>mlp_\w+|experts/(?!router)\w+))/kernel"
    )
    for path, leaf in trees.flatten(shapes).items():
        if found := matrix.fullmatch(path):
            divided = [a for a, b in zip(leaf.shape, places[path].shard_shape(leaf.shape)) if a != b]
            met.add(found["heads"] or found["hidden"].replace("experts/", "mlp_"))
            hidden = [size for size in leaf.shape[-2:] if size != config.width]
            assert divided == ([16] if found["heads"] else hidden), path
    assert met >= {"query", "key", "value", "out", "mlp_up", "mlp_down"}


@pytest.mark.parametrize(
    "case",
    families.objective_cases("documents_BT") + families.objective_cases("target_documents_BT"),
    ids=families.name_of,
)
def test_packed_documents_are_as_good_as_rows_of_their_own_in_parts(case: families.Case, on_one_device: Any):
    """Without a mesh. The rows are taken in four parts of four chunks: accumulation is one large batch. (The steps on a
    mesh have two parts, for every objective.)"""
    case = exact(case)
    rows = families.documents(case.config, 8, 16)
    alone = [[document] for documents in rows for document in documents]
    batch = families.BATCHES[case.learns](alone, 16)
    assert batch[case.ids[0]].shape == (16, 16)
    assert_same(trained(case, batch=batch, **in_parts(case, 16, accumulation=4)), on_one_device(case))


# ---- what is large is divided ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "mesh"),
    [(case, "fsdp 8") for case in families.objective_cases()]
    + [(case, "tensor 8") for case in families.objective_cases("cache")],
    ids=families.name_of,
)
def test_every_large_parameter_is_divided(case: families.Case, mesh: str):
    """Of parameters, their average and the optimizer's moments, no device holds more than an eighth of an array above a
    megabyte, by the plan."""
    with jax.enable_x64(False):
        case = case.sized(width=512, head_dim=64, mlp_dim=1024, num_layers=2, vocab_size=1900)
        run = families.run(case, mesh=MESHES[mesh], optimizer=ADAMW)
        program = prepare(run, jax.devices())
    large = [leaf for leaf in jax.tree.leaves(program.state) if math.prod(leaf.shape) * leaf.dtype.itemsize > 2**20]
    assert len(large) >= 4 * 6, "the model is too small for this test"
    for leaf in large:
        assert math.prod(leaf.sharding.shard_shape(leaf.shape)) * 8 == math.prod(leaf.shape)


def test_fresh_arrays_are_divided_as_planned():
    """Over all axes, for the objective with the most models."""
    (case,) = (case for case in families.objective_cases() if case.learns == "replaced-token-detection")
    with jax.enable_x64(False):
        run = families.run(case, mesh=MESHES[ALL], optimizer=ADAMW)
        program = prepare(run, jax.devices())
        params = program.fresh(0)
        fresh = jax.tree.leaves(params)
        state = program.begin(params, run)
    for arrays, planned in ((fresh, program.state.params), (jax.tree.leaves(state), program.state)):
        for leaf, plan in zip(arrays, jax.tree.leaves(planned), strict=True):
            assert {shard.data.shape for shard in leaf.addressable_shards} == {plan.sharding.shard_shape(leaf.shape)}


# ---- the tables -----------------------------------------------------------------------------------------------------


# One preset of each architecture: depth, special tokens and rates aside, which nothing here depends on.
def architecture(preset: registry.Preset) -> Any:
    of_no_shape = lambda name, value: isinstance(value, float) or name.endswith(("_id", "layers", "max_length", "rope"))
    sizes = vars(preset.config).items()
    return preset.family, tuple((name, value) for name, value in sizes if not of_no_shape(name, value))


DIFFERENT = {architecture(preset): name for name, preset in reversed(registry.presets().items())}


def assert_every_parameter_has_one_row(model: Any) -> None:
    """And every large matrix is divided: of a vector, a device holds the whole. Large is what has more than 2**20
    numbers, and more than the ten thousandth part of a model's."""
    shapes = registry.param_shapes(model)
    flat = trees.flatten(shapes)
    matched = trees.match(sharding.PARAM_AXES, flat)
    for path, axes in matched.items():
        assert len(axes.split()) <= flat[path].ndim, f"{path} has fewer dimensions than axes: {axes}"
        assert set(axes.split()) <= set(sharding.MESH_RULES), path
    places = trees.flatten(sharding.param_shardings(shapes, sharding.make_mesh(fsdp=8)))
    small = max(2**20, sum(leaf.size for leaf in flat.values()) // 10**4)
    for path, leaf in flat.items():
        divided = math.prod(leaf.shape) // math.prod(places[path].shard_shape(leaf.shape))
        is_vector = len(matched[path].removeprefix("experts ").split()) == 1  # perhaps one of each expert
        assert divided == 8 or is_vector or leaf.size < small, f"{path} {leaf.shape} stays whole"


@pytest.mark.parametrize("preset", DIFFERENT.values())
def test_every_parameter_of_every_preset_has_one_row(preset: str):
    published = registry.presets()[preset]
    assert_every_parameter_has_one_row(registry.family(published.family).Model(published.config))


@pytest.mark.parametrize("family", registry.families())
def test_every_parameter_of_other_configurations_has_one_row(family: str):
    """For all tasks; untied, grouped, without biases: also configurations that no preset has. They are wide, so that
    also a head's matrix is large."""
    module = registry.family(family)
    tasks = families.tasks(family)
    for seed, task in zip(range(max(5, len(tasks))), itertools.cycle(tasks)):
        config = dataclasses.replace(families.random_config(family, seed), width=2048, vocab_size=2000)
        if getattr(config, "embed_width", None):
            config = dataclasses.replace(config, embed_width=1024)
        assert_every_parameter_has_one_row(module.Model(config, task=task))


def test_rules_speak_of_axes_that_exist():
    for rule in sharding.MESH_RULES.values():
        for axis in rule if isinstance(rule, tuple) else (rule,):
            assert axis is None or axis in sharding.MESH_AXES


def test_a_parameter_without_a_row_is_named():
    with pytest.raises(ValueError, match="no rule:  blocks/gate/weights"):
        sharding.param_shardings({"blocks": {"gate": {"weights": np.zeros(8)}}}, sharding.make_mesh(fsdp=8))


# ---- meshes ---------------------------------------------------------------------------------------------------------


def test_mesh_sizes():
    mesh = sharding.make_mesh(data=-1, tensor=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2, "sequence": 1, "expert": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sharding.make_mesh(devices=jax.devices()[:1]).size == 1
    assert sharding.make_mesh(fsdp=-1, data=8).shape["fsdp"] == 1


@tpu_compiler
def test_meshes_of_a_torus():
    """Any sizes, whether or not they are those of whole sides."""
    devices = fit.topology_devices("v5p:4x4x4")
    for sizes in ({"fsdp": 16, "tensor": 4}, {"data": 2, "fsdp": 32}, {"fsdp": 8, "tensor": 8}):
        mesh = sharding.make_mesh(**sizes, devices=devices)
        assert {axis: size for axis, size in mesh.shape.items() if size > 1} == sizes
        assert set(mesh.devices.flat) == set(devices) and set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 3}, r"data=3, fsdp=1, tensor=1, sequence=1, expert=1 does not divide 8 device\(s\)"),
        ({"data": 16}, r"data=16, .* does not divide 8 device\(s\): choose sizes whose product is 8"),
        ({"data": -1, "tensor": 3}, r"data=-1, fsdp=1, tensor=3, .* does not divide 8"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"data": 0, "fsdp": 8}, "mesh sizes must be positive"),
        ({"data": -2, "fsdp": -4}, "mesh sizes must be positive"),
        ({"data": -8}, "mesh sizes must be positive"),
        ({}, r"does not divide 8 device\(s\)"),
    ],
    ids=str,
)
def test_meshes_that_cannot_be(sizes: dict[str, int], words: str):
    with pytest.raises(ValueError, match=words):
        sharding.make_mesh(**sizes)


def test_adopting_a_mesh():
    theirs = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    ours = sharding.adopt_mesh(theirs)
    assert dict(ours.shape) == {"fsdp": 4, "tensor": 2} and set(ours.axis_types) == {AxisType.Auto}
    assert sharding.spec("embed heads _", (3, 8, 8, 4), ours) == PartitionSpec(None, "fsdp", "tensor", None)
    with pytest.raises(ValueError, match=r"mesh axes \['model'\] are not known: .*'fsdp', 'tensor', 'sequence'"):
        sharding.adopt_mesh(jax.make_mesh((4, 2), ("data", "model")))


@each
def test_a_mesh_that_does_not_divide_the_model(case: families.Case):
    """Four heads on eight devices: one error that names parameter, axis and size, before any computation."""
    case = case.sized(num_heads=4, num_kv_heads=4)
    with pytest.raises(ValueError, match=r"blocks/.* has shape .* mesh axis 'tensor' of size 8 does not divide .* 4"):
        prepare(families.run(case, mesh=Mesh(data=1, tensor=8)))


@each
@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"mesh": Mesh(data=8), "training": Training(batch_size=12)},
            "batch_size=12 does not divide into .*=8",
        ),
        (
            {"mesh": Mesh(data=4, sequence=2), "length": 15},
            "B[TS] has shape .* 'sequence' of size 2 does not divide",
        ),
        ({"mesh": Mesh(data=2), "training": Training(batch_size=8, accumulation=8)}, "choose a multiple of 16"),
        ({"mesh": Mesh(data=3)}, "does not divide 8"),
    ],
    ids=["rows", "length", "accumulation", "devices"],
)
def test_a_mesh_that_does_not_divide_the_batch(case: families.Case, parts: dict[str, Any], words: str):
    sizes = dataclasses.astuple(parts["mesh"])
    devices = jax.devices()[: math.prod(sizes)] if math.prod(sizes) != 3 else None
    with pytest.raises(ValueError, match=words):
        prepare(families.run(case, **parts), devices)


def test_constraints_without_a_mesh_and_where_it_does_not_divide():
    x = np.ones((3, 16, 4))
    assert sharding.constrain(x, "batch length _") is x
    mesh = sharding.make_mesh(data=4, sequence=2)
    assert sharding.fitting("batch length _", x.shape, mesh) == PartitionSpec(None, "sequence", None)
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda x: sharding.constrain(x, "batch length _"))(x)
    assert placed.addressable_shards[0].data.shape == (3, 8, 4)
