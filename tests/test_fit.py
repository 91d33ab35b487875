"""Whether a run fits a TPU slice: topologies, collectives counted, the table, and suggestions if it does not."""

import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from conftest import tpu_compiler

from transformer_zoo import fit, installation, sharding
from transformer_zoo.config import Data, Mesh, Run, Training
from transformer_zoo.models import bert, gpt2, t5
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import CausalLM


@pytest.fixture(autouse=True)
def named():
    """Operations have the names of their modules, which tests of other things do without."""
    with nn.override_named_call():
        yield


@pytest.fixture
def hasty():
    """The compiler makes slower programs, in a fraction of the time; `test_a_run_that_fits` compiles as users do."""
    effort = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    yield
    jax.config.update("jax_exec_time_optimization_effort", effort)


def run(batch_size=4, length=128, width=128, num_layers=2, **settings):
    config = gpt2.Config(
        vocab_size=500, max_length=length, width=width, num_layers=num_layers, num_heads=2,
        embed_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0,
    )  # fmt: skip
    return Run(
        model=config,
        objective=CausalLM(),
        data=Data(length=length),
        mesh=Mesh(data=1, fsdp=-1),
        training=Training(batch_size=batch_size),
        **settings,
    )


@pytest.mark.parametrize("name, hint", [("v5e4x4", "v5e:4x4"), ("v5:2x2", "v5e:2x2"), ("h100", None)])
def test_an_unknown_topology(name, hint):
    with pytest.raises(ValueError, match="is not known.* Known are v5e: 1x1 2x2 2x4 4x4") as error:
        fit.topology_devices(name)
    assert hint is None or f"Did you mean {hint!r}?" in str(error.value)


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(fit.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'transformer-zoo\[tpu\]'"):
        fit.topology_devices("v5e:4x4")


def test_a_compiler_that_is_too_old(monkeypatch):
    """An error before anything is compiled: such a compiler ends the process."""
    monkeypatch.setattr(fit.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(installation, "outdated_libtpu", lambda: "libtpu 0.0.21.1 is older than 0.0.23")
    model = gpt2.Model(run().model)
    for report in (lambda: fit.fit(run(), "v5e:2x2"), lambda: fit.fit_writing(model, fit.Writing(), "v5e:2x2")):
        with pytest.raises(ImportError, match="for a TPU that is not there: libtpu 0.0.21.1 is older than 0.0.23"):
            report()


@tpu_compiler
def test_every_topology_that_is_offered_exists_and_makes_a_mesh():
    for name in fit.TOPOLOGIES:
        chips = math.prod(int(size) for size in name.split(":")[1].split("x"))
        devices = fit.topology_devices(name)
        assert len(devices) == chips * (2 if name.startswith("tpu7x") else 1), name
        if chips <= 64:
            assert sharding.make_mesh(fsdp=-1, devices=devices).shape["fsdp"] == len(devices)


@tpu_compiler
@pytest.mark.parametrize("generation", fit.GENERATIONS)
def test_the_memory_of_a_device_is_what_the_compiler_says(generation):
    limit, shapes = fit.GENERATIONS[generation]
    mesh = sharding.make_mesh(data=-1, devices=fit.topology_devices(f"{generation}:{shapes[1]}"))
    x = jax.ShapeDtypeStruct(
        (mesh.size, 200, 2**28),
        jnp.float32,
        sharding=sharding.batch_shardings({"x_BTD": jnp.zeros((mesh.size, 1, 1))}, mesh)["x_BTD"],
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="exceeds available HBM") as error:
        jax.jit(jnp.sin).lower(x).compile()
    says = float(re.search(r"available HBM \(([\d.]+)G\)", str(error.value))[1])
    assert 0 <= says - limit < 0.02  # from release to release, by ten MiB


PROGRAM = """
HloModule step

%region_add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (u32[], f32[8,4])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8)
  %p = (u32[]{:T(128)}, f32[8,4]) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (p.1: (u32[], f32[8,4])) -> (u32[], f32[8,4]) {
  %p.1 = (u32[]{:T(128)}, f32[8,4]) parameter(0)
  %i.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x = f32[8,4] get-tuple-element(%p.1), index=1
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i.1, %two), metadata={op_name="while/body/add"}
  %send = (f32[8,4]{1,0:T(8,128)}, f32[8,4]{1,0:T(8,128)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3
  %sent = f32[8,4]{1,0} collective-permute-done(%send)
  ROOT %tuple = (u32[]{:T(128)}, f32[8,4]) tuple(%next, /*index=1*/%sent)
}

%first_part (q: bf16[2,4]) -> bf16[8,4] {
  ROOT %gather.1 = bf16[8,4]{1,0} all-gather(%q), channel_id=5, dimensions={0}
}

%second_part (r: bf16[2,4]) -> bf16[8,4] {
  ROOT %gather.2 = bf16[8,4]{1,0} all-gather(%r), channel_id=5, dimensions={0}
}

ENTRY %main (x.1: f32[8,4], y: bf16[2,4]) -> f32[] {
  %loop = (u32[], f32[8,4]) while(%start), condition=%condition, body=%body
  %fusion.1 = bf16[8,4] fusion(%y), kind=kCustom, calls=%first_part
  %fusion.2 = bf16[8,4] fusion(%y), kind=kCustom, calls=%second_part
  ROOT %total = (f32[], f32[16]) all-reduce(%a, %b), channel_id=7, to_apply=%region_add
}
"""


def test_collectives_are_counted_with_their_loops_and_once_each():
    assert fit.count_collectives(PROGRAM) == {
        "all-gather": (1, 64),  # two parts of one operation
        "all-reduce": (1, 4 + 64),
        "collective-permute": (4, 4 * 128),  # 8 in steps of 2
    }


@tpu_compiler
def test_a_run_that_fits(capsys, monkeypatch):
    small = run(batch_size=16, compute=Compute(dtype="bfloat16", remat="full"))
    report = fit.fit(small, "v5e:2x2")
    params = 4 * report.num_params
    assert report.fits and report.mesh == {"fsdp": 4}
    assert params / 4 < report.arguments["parameters"] < params / 2  # a quarter each, but for norms and biases
    assert abs(report.arguments["optimizer"] - 2 * report.arguments["parameters"]) < 100
    assert report.temporaries > 0 and report.total >= sum(report.arguments.values()) + report.temporaries
    count, size = report.collectives["all-gather"]
    assert count > 0 and size > 0
    assert report.seconds > 0
    monkeypatch.setattr(fit, "fit", lambda *_: report)
    assert fit.main(small, "v5e:2x2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and "It fits" in lines[-1]
    assert sum("arguments: parameters" in line for line in lines) == 1


@tpu_compiler
def test_a_run_that_does_not_fit(capsys, monkeypatch, hasty):
    """Every layer's MLP keeps arrays of 1 GiB for the backward pass, unless they are recomputed."""
    monkeypatch.setattr(fit, "ENOUGH", 1)
    assert fit.main(run(batch_size=2**12, num_layers=8), "v5e:1x1") == 3
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 40
    assert re.search(r"It does not fit: [\d.]+ GiB of 15.75 GiB, [\d.]+ GiB too much", out)
    assert re.search(r"\d x f32\[8,4096,128,512\]  .*blocks/(mlp_|blocks.activate)", out)
    assert "It fits with --compute.remat full: " in out


@tpu_compiler
def test_parameters_alone_that_do_not_fit():
    report = fit.fit(run(width=2**15, num_layers=40), "v5e:2x2")
    assert not report.fits and report.seconds is None
    assert report.total == sum(report.arguments.values())
    assert "mlp" in report.largest[0][1]


@tpu_compiler
@pytest.mark.parametrize("beams", [1, 4])
def test_what_a_model_writes(beams, capsys, monkeypatch, hasty):
    config = t5.Config(vocab_size=500, width=128, num_layers=2, num_decoder_layers=2, num_heads=4, mlp_dim=256)
    writing = fit.Writing(batch_size=8, length=128, max_new_tokens=16, beams=beams)
    report = fit.fit_writing(t5.Model(config), writing, "v5e:2x2")
    assert report.fits and report.mesh == {"tensor": 4}
    params = 2 * report.num_params  # bytes of bfloat16
    assert params / 4 <= report.arguments["parameters"] < params / 2
    assert report.arguments["batch"] == 8 * 128 * 5 and report.temporaries > 0
    assert report.collectives["all-reduce"][0] > 0
    monkeypatch.setattr(fit, "fit_writing", lambda *_: report)
    assert fit.main_writing(t5.Model(config), writing, "v5e:2x2") == 0
    assert "8 x 16 new tokens on one device" in capsys.readouterr().out
    large = dataclasses.replace(report, total=2 * report.limit)
    monkeypatch.setattr(fit, "fit_writing", lambda *_: large)
    assert fit.main_writing(t5.Model(config), writing, "v5e:2x2") == 3
    assert "Take a larger slice" in capsys.readouterr().out


@tpu_compiler
def test_a_model_that_does_not_write():
    with pytest.raises(ValueError, match="is an encoder and does not generate"):
        fit.fit_writing(bert.Model(bert.PRESETS["bert-base-uncased"][1]), fit.Writing(), "v5e:2x2")


def tried(monkeypatch, settings, fits):
    """The flags that are suggested for a run, if `fits` decides whether a changed run fits."""
    reports = []

    def pretend(changed, topology):
        reports.append(changed)
        return fit.Report(topology=topology, mesh={}, num_params=1, arguments={}, total=1, limit=int(fits(changed)))

    monkeypatch.setattr(fit, "fit", pretend)
    monkeypatch.setattr(fit, "topology_devices", lambda topology: [None] * 16)
    found, untried = fit.suggest(settings, "v5e:4x4")
    return [flags for flags, _ in found], untried, reports


def test_single_changes_are_tried_first(monkeypatch):
    found, untried, reports = tried(monkeypatch, run(batch_size=64), lambda r: r.training.batch_size == 32)
    assert found == ["--training.batch-size 32"] and not untried
    assert reports[0].compute.remat == "full" and reports[0].compute.dtype == "float32"


def test_then_more_and_more_together(monkeypatch):
    enough = lambda r: r.compute == Compute(remat="full", dtype="bfloat16")
    found, _, _ = tried(monkeypatch, run(batch_size=64), enough)
    assert found == ["--compute.remat full --compute.dtype bfloat16"]


def test_what_is_so_already_or_does_not_divide_is_not_tried(monkeypatch):
    settings = run(batch_size=1, compute=Compute(remat="full", dtype="bfloat16"))
    found, _, reports = tried(monkeypatch, settings, lambda r: False)
    assert not found and all(r.training.batch_size == 1 for r in reports)
    assert not any(r.compute == settings.compute and r.objective == settings.objective for r in reports)


def test_time_runs_out(monkeypatch):
    monkeypatch.setattr(fit, "SECONDS", -1)
    found, untried, reports = tried(monkeypatch, run(), lambda r: True)
    assert not found and not reports and untried[0] == "--compute.remat full"
