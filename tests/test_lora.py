"""Low-rank adapters: which layers have one, what is trained, runs with them, and files in PEFT's layout."""

import dataclasses
import functools
import io
import json
import shutil
from pathlib import Path
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from rich.console import Console

import transformer_zoo as zoo
from transformer_zoo import __main__, commands, loop, lora, registry, runs, trees
from transformer_zoo.checkpoints import peft, safetensors
from transformer_zoo.config import Checkpoints, Data, Evaluation, Logging, Lora, Optimizer, Run, Training
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.models import gpt2
from transformer_zoo.nn.lora import LINEAR
from transformer_zoo.nn.quantized import is_quantized
from transformer_zoo.objectives import CausalLM, Distillation, SequenceClassification
from transformer_zoo.pretrained import Bundle
from transformer_zoo.resolve import resolve
from transformer_zoo.training import prepare

# ---- the layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", registry.families())
def test_kernels_are_published_as_matrices(family: str) -> None:
    """Of linear layers, all in the blocks; each factor has PEFT's shape: [rank, inputs] or [outputs, rank] of the
    published tensor."""
    case = families.main(family)
    shapes = registry.param_shapes(case.model)
    found = peft.matrices(case.module, shapes, config=case.config, task=case.task)
    kernels = {path for matrix in found.values() for path in matrix.row.paths}
    linear = {f"{path}/kernel" for path in registry.layers(case.model, LINEAR) if "blocks/" in path}
    assert linear <= kernels, linear - kernels
    for matrix in found.values():
        a, b, magnitude = (row.shape for row in matrix.factors(3).values())
        inputs, outputs = matrix.row.shape if matrix.inputs_first else matrix.row.shape[::-1]
        assert (a, b, magnitude) == ((3, inputs), (outputs, 3), (outputs,)), matrix.theirs


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", Lora(rank=2, alpha=3.0, dora=True)),  # one matrix for queries, keys and values
        ("albert", Lora(rank=3, rank_stabilized=True)),  # layers that share parameters
    ],
)
def test_merged_is_beside(family: str, settings: Lora) -> None:
    """Adapters in the kernels, and beside them: the same; and before training, the model as it was."""
    with jax.enable_x64(True):
        case = families.main(family).wide()
        model = lora.adapted(case.model, settings)
        params, tokens_BT = families.random_params(model, 0, 0.3), case.tokens(1, 5)

        _, base = model.divided(params)
        merge = jax.jit(model.merged)
        began = merge(lora.joined(params, jax.jit(model.fresh)(jax.random.key(0), base)))
        same = jax.tree.map(functools.partial(np.allclose, rtol=1e-12), began, base)
        apply = lambda params, merged: [
            model.apply({"params": params}, tokens_BT).hidden_BTD,
            case.model.apply({"params": merged}, tokens_BT).hidden_BTD,
        ]
        beside, merged = map(np.asarray, jax.jit(apply)(params, changed := merge(params)))
    assert jax.tree.all(same)
    np.testing.assert_allclose(beside, merged, rtol=1e-10, atol=1e-12)
    kernels = {kernel for matrix in model.adapters.values() for kernel in matrix.row.paths}
    changed, base = map(trees.flatten, jax.device_get((changed, base)))
    moved = {path: np.abs(x - base[path]).max() for path, x in changed.items()}
    assert {path for path, by in moved.items() if by > 0.1} == kernels == {path for path, by in moved.items() if by}


def test_dropout_is_of_the_adapters_inputs() -> None:
    """With a key, the mean over many of them is the output without one, and the model's own part has no noise."""
    case = families.main("gpt2")
    model = lora.adapted(case.model, Lora(rank=2, targets=(r".*/mlp_down",), dropout=0.5))
    params = families.random_params(model, 0, 0.3)
    tokens_BT = jnp.asarray(case.tokens(1, 3))
    apply = lambda params, key: model.apply({"params": params}, tokens_BT, train=True, rngs={"dropout": key}).hidden_BTD
    apply = jax.jit(jax.vmap(apply, (None, 0)))
    drawn = apply(params, jax.random.split(jax.random.key(0), 8))
    assert len(np.unique(np.round(drawn[:, 0, 0, 0], 5))) == 8
    still = lora.joined(params, {"blocks": {"mlp_down": {"lora_b": 0 * params["blocks"]["mlp_down"]["lora_b"]}}})
    assert np.ptp(apply(still, jax.random.split(jax.random.key(0), 8)), axis=0).max() < 1e-6


def test_targets_that_cannot_be() -> None:
    model = families.main("gpt2").model
    for targets, message in {
        (r".*/query",): "not blocks/attention/key and blocks/attention/value, and they are published as one matrix",
        (r".*/quary",): "matches no parameter.* Linear layers are blocks/attention/key, ",
    }.items():
        with pytest.raises(ValueError, match=message):
            _ = lora.adapted(model, Lora(rank=2, targets=targets)).adapters
    both = lora.adapted(model, Lora(rank=2, whole=(r".*/mlp_up/.*",)))
    with pytest.raises(ValueError, match="blocks/mlp_up/kernel: lora.whole would train it, and lora.targets"):
        both.divided(registry.param_shapes(model))
    convolution = families.main("deberta_v2").model
    with pytest.warns(UserWarning, match="also matches conv/filter, which are no linear layers"):
        _ = lora.adapted(convolution, Lora(rank=2, targets=(".*",))).adapters
    with pytest.raises(ValueError, match="lora.alpha is given and lora.rank is None"):
        Lora(alpha=8.0)
    with pytest.raises(ValueError, match="lora.rank is given and init_from is None"):
        Run(model=None, objective=None, lora=Lora(rank=2))
    small = families.small("bert")
    pair = Distillation(teacher="x", architecture=json.dumps(registry.as_json(small)))
    with pytest.raises(ValueError, match="lora.rank is for objectives that train one model"):
        prepare(Run(model=small, objective=pair, init_from="x", lora=Lora(rank=2)))


# ---- PEFT's files ---------------------------------------------------------------------------------------------------


def base_and_adapter(folder: Path, dora: bool = True) -> Any:
    """A small GPT-2 with random weights, and an adapter of random numbers as PEFT writes it: c_attn of rank 3, c_fc of
    rank 2 and with an alpha of its own, and a norm that was trained whole."""
    case = families.main("gpt2").wide()
    base = Bundle(case.model, case.params(), case.config)
    zoo.save_pretrained(folder / "base", base)
    rng, width = np.random.default_rng(1), case.config.width
    draw = lambda *shape: rng.normal(size=shape)
    tensors = {}
    for layer in range(case.config.num_layers):
        for module, rank, outputs in (("attn.c_attn", 3, 3 * width), ("mlp.c_fc", 2, case.config.mlp_dim)):
            name = f"base_model.model.transformer.h.{layer}.{module}"
            tensors |= {
                f"{name}.lora_A.weight": draw(rank, width), f"{name}.lora_B.weight": draw(outputs, rank),
                f"{name}.lora_magnitude_vector": 1 + draw(outputs) ** 2,
            }  # fmt: skip
    tensors |= {f"base_model.model.transformer.ln_f.{name}": draw(width) for name in ("weight", "bias")}
    tensors = {name: x for name, x in tensors.items() if dora or "magnitude" not in name}
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(folder / "base"), "r": 3,
        "lora_alpha": 5, "rank_pattern": {"c_fc": 2}, "alpha_pattern": {r"h\.\d\.mlp\.c_fc": 1}, "use_dora": dora,
        "target_modules": ["c_attn", "c_fc"], "modules_to_save": ["ln_f"], "fan_in_fan_out": True,
    }  # fmt: skip
    (folder / "adapter").mkdir()
    safetensors.write_file(folder / "adapter" / peft.WEIGHTS, tensors)
    (folder / "adapter" / peft.CONFIG).write_text(json.dumps(settings))
    return base


# Of PEFT 0.21 on torch 2.13, in float64: the first logits of the last token.
LOGITS = {
    True: (-0.5298011704334465, 2.392079720612437, -1.6654433937322224, 0.03911956752445797),
    False: (-0.44085288965944064, 2.5888252888245207, -1.3868047613740735, -1.5126952187683846),
}


@pytest.mark.parametrize("dora", [True, False])
def test_an_adapter_is_read_as_peft_reads_it(tmp_path: Path, dora: bool) -> None:
    with jax.enable_x64(True):
        base_and_adapter(tmp_path, dora)
        double = {"dtype": "float64", "param_dtype": "float64"}
        m = zoo.from_pretrained(tmp_path / "adapter", **double)
        logits = jax.jit(lambda params: m.model.apply({"params": params}, np.arange(7)[None]).logits)(m.params)
        np.testing.assert_allclose(logits[0, -1, :4], LOGITS[dora], rtol=1e-9)
        moved = zoo.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter", **double)
        assert jax.tree.all(jax.tree.map(np.array_equal, moved.params, m.params))


def test_adapters_that_cannot_be_read(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        base_and_adapter(tmp_path)
    folder, files = tmp_path / "adapter", {}
    for file in folder.iterdir():
        files[file.name] = file.read_bytes()
    settings, tensors = json.loads(files[peft.CONFIG]), safetensors.read_file(folder / peft.WEIGHTS)
    tensors = {name: np.array(x) for name, x in tensors.items()}
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    faults: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"peft_type": "LOHA"}, {}, "its peft_type is 'LOHA'"),
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights='pissa' has changed the weights of its base"),
        ({"layer_replication": [[0, 2]]}, {}, "asks for layer_replication, which is not known"),
        ({"lora_alpha": "much"}, {}, "lora_alpha is a text"),
        ({"alpha_pattern": {"(": 1}}, {}, "in alpha_pattern is no pattern"),
        ({"base_model_name_or_path": None}, {}, "does not name its base model: give that"),
        ({"base_model_name_or_path": str(tmp_path / "none")}, {}, "which cannot be read: .* Of a copy elsewhere"),
        ({"base_model_name_or_path": str(folder)}, {}, "which cannot be read: it is an adapter itself"),
        ({}, {name: np.zeros((3, 5), np.float32)}, r"h.0.attn.c_attn: lora_A.weight is \[3, 5\], expected \[3, 32\]"),
        ({}, {name: np.zeros(3, np.float32)}, r"h.0.attn.c_attn: lora_A.weight is \[3\], expected \[3, 32\]"),
        ({}, {name: None}, "h.0.attn.c_attn: it has lora_B.weight, lora_magnitude_vector, expected"),
        ({}, {name.replace("h.0", "h.7"): tensors[name]}, "transformer.h.7.attn.c_attn is no linear layer"),
        ({}, {name.replace("lora_A", "lora_embedding_A"): tensors[name]}, "read are adapters of linear layers"),
        ({}, {name.removeprefix("base_model."): tensors[name]}, "read are adapters of linear layers"),
        ({}, {"base_model.model.transformer.h.9.ln_1.bias": tensors[name]}, r"unexpected:  transformer.h.9.ln_1.bias"),
    ]
    for changes, others, message in faults:
        (folder / peft.CONFIG).write_text(json.dumps(settings | changes))
        (folder / peft.WEIGHTS).unlink()
        kept = {key: x for key, x in (tensors | others).items() if x is not None}
        safetensors.write_file(folder / peft.WEIGHTS, kept)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            zoo.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        zoo.from_pretrained(tmp_path / "base", adapter=tmp_path / "base")


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with a tokenizer, and texts to train it on."""
    folder = tmp_path_factory.mktemp("published")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "brew"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size=rng.integers(5, 60))) for _ in range(24)]
    (folder / "texts.txt").write_text("\n\n".join(texts))
    config = gpt2.Config(vocab_size=300, max_length=32, width=32, num_layers=2, num_heads=2, eos_id=0)
    m = zoo.from_config("gpt2", config).replace(tokenizer=Tokenizer.train(texts, 300))
    zoo.save_pretrained(folder / "base", m)
    return folder


def tuning(published: Path, directory: Path, **changes: Any) -> Run:
    settings = {
        "model": gpt2.Config(), "objective": CausalLM(), "init_from": str(published / "base"),
        "directory": str(directory), "data": Data(source=f"text:{published}/texts.txt", length=32),
        "optimizer": Optimizer(peak_lr=1e-2, schedule="constant", ema=0.5),
        "lora": Lora(rank=2, dropout=0.1, dora=True, targets=(r".*/(query|key|value|mlp_up)",)),
        "training": Training(steps=4, batch_size=8),
        "evaluation": Evaluation(every=4, batches=2), "checkpoints": Checkpoints(every=2),
        "logging": Logging(every=1, tensorboard=False),
    }  # fmt: skip
    return Run(**settings | changes)


def test_a_run_with_adapters(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains them alone, goes on bit for bit, and gives a model like any other, whole or as an adapter."""
    console = Console(file=io.StringIO(), width=200)
    run = tuning(published, tmp_path / "run")
    report = loop.train(run, console)
    program = prepare(runs.read(tmp_path / "run"))
    trained = {path.rpartition("/")[2] for path in trees.flatten(program.state.params)}
    assert trained == {"lora_a", "lora_b", "lora_magnitude"}
    count, base = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (program.state.params, program.base))
    assert sum(x.size for x in jax.tree.leaves(program.state.opt_state)) < 2.1 * count < base / 2
    assert f"{count:,} of {count + base:,} parameters are trained" in console.file.getvalue()

    # As it was after the first checkpoint, without its end.
    shutil.copytree(tmp_path / "run", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "4")
    part = tuning(published, tmp_path / "part", evaluation=Evaluation(every=None))
    loop.train(part, Console(file=io.StringIO()))
    m = runs.load_run(tmp_path / "run")
    for own, again in zip(jax.tree.leaves(m.params), jax.tree.leaves(runs.load_run(tmp_path / "part").params)):
        np.testing.assert_array_equal(own, again)

    first = zoo.from_pretrained(published / "base")
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), first.params, m.params)
    assert {path for path, x in trees.flatten(changed).items() if x} == {
        "blocks/mlp_up/kernel",
        *(f"blocks/attention/{name}/kernel" for name in ("query", "key", "value")),
    }
    assert zoo.evaluate(m, batches=2, batch_size=8)["loss"] == pytest.approx(report["loss"], rel=1e-5)

    convert = lambda *arguments: __main__.main(["convert", *map(str, arguments)])
    assert convert(tmp_path / "run", tmp_path / "adapter") == 0
    assert convert(tmp_path / "run", tmp_path / "whole", "--merge") == 0
    assert not (tmp_path / "adapter" / "config.json").exists() and (tmp_path / "whole" / "config.json").exists()
    settings = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
    expected = {
        "r": 2, "lora_alpha": 16.0, "lora_dropout": 0.1, "use_dora": True, "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(published / "base"), "fan_in_fan_out": True, "modules_to_save": None,
        "target_modules": ["c_attn", "c_fc"],
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected
    tensors = safetensors.read_file(tmp_path / "adapter" / peft.WEIGHTS)
    assert len(tensors) == 2 * 2 * 3
    assert tensors["base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"].shape == (96, 2)
    for folder in ("adapter", "whole"):
        read = zoo.from_pretrained(tmp_path / folder)
        assert read.tokenizer.fingerprint == m.tokenizer.fingerprint
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), read.params, m.params)
    capsys.readouterr()
    assert convert(tmp_path / "adapter", tmp_path / "x", "--merge") == 1
    assert convert(tmp_path / "run", tmp_path / "whole") == 1
    assert convert(tmp_path / "whole", tmp_path / "adapter") == 1
    said = capsys.readouterr().err
    assert "--merge is for a run with adapters" in said
    remedy = "name another folder, or pass --overwrite to replace it\n"
    assert f"whole holds a model, config.json, model.safetensors: {remedy}" in said
    assert f"adapter holds an adapter, adapter_config.json, adapter_model.safetensors: {remedy}" in said
    assert convert(tmp_path / "run", tmp_path / "adapter") == 0  # the same one again
    edited = settings | {"r": 4}
    (tmp_path / "adapter" / peft.CONFIG).write_text(json.dumps(edited))
    assert convert(tmp_path / "run", tmp_path / "adapter") == 1
    assert "an adapter that is another one or was not written here, with r 4" in capsys.readouterr().err
    assert convert(tmp_path / "run", tmp_path / "whole", "--overwrite") == 0
    assert {file.name for file in (tmp_path / "whole").iterdir()} >= {peft.CONFIG, peft.WEIGHTS}
    assert not (tmp_path / "whole" / "config.json").exists()
    with pytest.raises(ValueError, match="other settings, .*\n(.*\n)*  lora.rank: 2 there, 4 now"):
        loop.train(tuning(published, tmp_path / "run", lora=Lora(rank=4)), console)


def test_gradients_over_a_quantised_base() -> None:
    """They are those over the numbers that the codes stand for, and the backward pass does not keep these numbers."""
    with jax.enable_x64(True):
        config = families.small("gpt2", width=64, mlp_dim=256, num_layers=20)
        plain = gpt2.Model(config, task="causal-lm", compute=zoo.Compute(dtype="float64", param_dtype="float64"))
        model = lora.adapted(plain, Lora(rank=2, quantize="nf4", dora=True, targets=(r".*/(out|mlp_up)",)))
        trained, base = model.divided(model.based(families.random_params(model, 0, 0.3)))
        assert {x.format for x in jax.tree.leaves(base, is_leaf=is_quantized) if is_quantized(x)} == {"int8", "nf4"}
        wide = jax.jit(lambda base: jax.tree.map(meta.unbox, base, is_leaf=is_quantized))(base)
        tokens_BT = jnp.arange(8)[None]

        def loss(trained: Any, base: Any) -> jax.Array:
            apply = functools.partial(model.apply, {"params": lora.joined(base, trained)})
            logits_BTV = apply(apply(tokens_BT).hidden_BTD, method="logits")[..., : config.vocab_size]
            return (logits_BTV**2).sum()

        programs = [jax.jit(jax.grad(loss)).lower(trained, part).compile() for part in (base, wide)]
        found, expected = programs[0](trained, base), programs[1](trained, wide)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(other).max())
    blocks = sum(x.nbytes for x in jax.tree.leaves(wide["blocks"]))
    assert programs[0].memory_analysis().temp_size_in_bytes < blocks / 2


def test_a_run_over_a_quantised_base(published: Path, tmp_path: Path) -> None:
    """It trains, goes on bit for bit, and leaves adapters merged into the numbers that the codes stand for."""
    settings = {
        "lora": Lora(rank=2, quantize="nf4"), "evaluation": Evaluation(every=None),
        "checkpoints": Checkpoints(every=2), "training": Training(steps=4, batch_size=8),
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    loop.train(tuning(published, tmp_path / "run", **settings), console)
    shutil.copytree(tmp_path / "run", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "4")
    loop.train(tuning(published, tmp_path / "part", **settings), Console(file=io.StringIO()))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.1

    m, again = runs.load_run(tmp_path / "run"), runs.load_run(tmp_path / "part")
    for own, other in zip(jax.tree.leaves(m.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(own, other)
    first = zoo.from_pretrained(published / "base")
    base, factors = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (first.params, m.adapter.params))
    assert f"{factors:,} of {base + factors:,} parameters are trained" in console.file.getvalue()
    base = trees.flatten(first.quantize("nf4").params)
    table = trees.flatten(m.params)["token_embed/embedding"]
    np.testing.assert_array_equal(table, base["token_embed/embedding"].unbox())
    with pytest.warns(
        UserWarning, match="trained over weights in nf4.*save_pretrained .convert --merge. writes the one"
    ):
        assert len(zoo.save_adapter(tmp_path / "adapter", m)) > 2
    loaded = __main__.Generate(name=str(tmp_path / "run"), quantize="int4").load(str(tmp_path / "run"), None)
    assert is_quantized(loaded.params["blocks"]["mlp_up"]["kernel"])
    with pytest.raises(ValueError, match="save_adapter: the model is quantised"):
        zoo.save_adapter(tmp_path / "other", m.quantize("int8"))


def test_a_fresh_head_is_trained_whole(published: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"a fox {i},yes\na dog {i},no\n" for i in range(12)))
    run = tuning(
        published, tmp_path / "run", objective=SequenceClassification(), lora=Lora(rank=2, targets=(r".*/mlp_up",)),
        data=Data(source=f"csv:{tmp_path}/data.csv", length=16), training=Training(steps=1, batch_size=8),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="has no head/scores/kernel: fresh"):
        found = resolve(run)
    assert found.run.lora.whole == ("head/scores/kernel",)
    assert set(trees.flatten(found.program.state.params)) == {
        "head/scores/kernel", "blocks/mlp_up/lora_a", "blocks/mlp_up/lora_b",
    }  # fmt: skip
    trained, base = found.program.divided(found.bundle.params, 0)
    m = dataclasses.replace(
        found.bundle, params=found.program.model.merged(lora.joined(base, trained)),
        adapter=lora.Adapter(found.program.model, trained, run.init_from),
    )  # fmt: skip
    zoo.save_adapter(tmp_path / "adapter", m)
    assert json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())["modules_to_save"] == ["score"]
    read = zoo.from_pretrained(tmp_path / "adapter", labels=("no", "yes"))
    assert read.model.task == "sequence-classification" and not read.fresh
    np.testing.assert_array_equal(read.params["head"]["scores"]["kernel"], m.params["head"]["scores"]["kernel"])


def test_the_command_line_has_the_settings(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by the names of other libraries."""
    seen: list[Run] = []
    monkeypatch.setattr(loop, "train", seen.append)
    arguments = ["--lora.rank", "4", "--lora.targets", r".*/(query|key|value)", "--lora.dora", "True"]
    arguments += ["--lora.quantize", "nf4"]
    assert commands.train(["configs/gpt2_finetune.py", *arguments]) == 0
    assert seen[0].lora == Lora(rank=4, targets=(r".*/(query|key|value)",), dora=True, quantize="nf4")
    assert commands.train(["configs/gpt2_finetune.py", "--lora_alpha", "4"]) == 2
    assert "lora.alpha" in capsys.readouterr().err
