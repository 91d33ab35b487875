"""How fast a decoder trains: tokens a second of the real train step, and of the reference library beside it.

    python benchmarks/train_step.py --peer torch
    python benchmarks/train_step.py --model gpt2-medium --batch 8 --length 1024 --dtype bfloat16

A step is forward, backward, clipping and AdamW, with dropout off, on random tokens. Model FLOPs a token are

    6 (kernels + output layer) + 6 L T D

that is, two for every weight that is multiplied with, and causal attention counted once: on average T/2 keys in each of
the two products of a layer; three times that for forward and backward. Nothing that is computed again counts.
Utilisation is relative to the device's peak: on a CPU to a matrix product measured in the same process, in turn with
the steps; on accelerators to the table below.
"""

import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import peers
import tyro
from rich.console import Console
from rich.table import Table

from transformer_zoo.pages import use_huge_pages

PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOP/s by `device_kind`, from the makers' data sheets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = "gpt2"
    """A preset of a decoder, with random weights."""
    batch: int = 4
    """Rows."""
    length: int = 256
    """Tokens in a row."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters and optimizer are float32."""
    unroll: int | None = None
    """Layers in one turn of the scan. None: all of them on a CPU, else 1."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again."""
    pieces: int = 1
    """Parts of a row whose logits are computed at a time."""
    repeats: int = 7
    """Steps that are timed."""
    peer: Literal["none", "torch"] = "none"
    """torch: the reference library, eager, on as many threads as there are cores."""


def main(settings: Settings) -> None:
    import jax

    console, tokens = Console(), settings.batch * settings.length
    peak = peak_of(jax.devices()[0])
    ours, config, compiling = build(settings)
    steps: dict[str, Callable[[], float]] = {f"transformer_zoo (jax {jax.__version__})": ours}
    if settings.peer == "torch":
        with tempfile.TemporaryDirectory() as folder:
            write_config(config, folder)
            name, ask = peers.start(serve_torch, folder, settings)
        steps[name] = functools.partial(ask, "step")

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks: list[float] = []
    for turn in range(settings.repeats + 1):
        for name, step in steps.items():
            taken = step()
            if turn:  # the one before is for warming up
                seconds[name].append(taken)
        peaks.append(peak())

    flops, best = flops_per_token(config, settings.length) * tokens, statistics.median(peaks)
    kind, cores = jax.devices()[0].device_kind, os.cpu_count()
    size = f"{settings.batch} x {settings.length} tokens"
    lines = Table(title=f"{settings.model}, {settings.dtype}, {size}, {kind}, {cores} cores")
    lines.add_column("")
    for column in ("tokens/s", "seconds a step", "of the peak"):
        lines.add_column(column, justify="right")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        spread = f"{median:.2f} ({min(taken):.2f} to {max(taken):.2f})"
        lines.add_row(name, f"{tokens / median:,.0f}", spread, f"{flops / median / best:.0%}")
    if settings.peer != "none":
        mine, theirs = (statistics.median(taken) for taken in seconds.values())
        lines.add_row("times faster than the peer", f"{theirs / mine:.2f}", "", "", style="bold")
    console.print(lines)
    console.print(
        f"{flops / 1e9:,.0f} GFLOP a step; peak {best / 1e9:,.0f} GFLOP/s, "
        f"{'measured in turn' if jax.default_backend() == 'cpu' else 'by the table'}; compiled in {compiling:.0f} s."
    )


def build(settings: Settings) -> tuple[Callable[[], float], Any, float]:
    """A function that takes a step and says how long it took, the architecture, and the seconds of compiling."""
    import jax
    import numpy as np

    import transformer_zoo as zoo
    from transformer_zoo import training
    from transformer_zoo.config import Data, Run, Training
    from transformer_zoo.objectives import CausalLM

    if settings.model not in zoo.presets():
        sys.exit(f"error: there is no preset {settings.model!r}: choose one of {', '.join(zoo.presets())}")
    config = zoo.presets()[settings.model].config
    config = dataclasses.replace(
        config, **{f.name: 0.0 for f in dataclasses.fields(config) if f.name.endswith("dropout")}
    )
    unroll = settings.unroll or (config.num_layers if jax.default_backend() == "cpu" else 1)
    run = Run(
        model=config,
        objective=CausalLM(pieces=settings.pieces),
        compute=zoo.Compute(dtype=settings.dtype, unroll=unroll, remat=settings.remat),
        data=Data(length=settings.length),
        training=Training(batch_size=settings.batch),
    )
    program = training.prepare(run)
    state = program.begin(program.fresh(0), run)
    rng, shape = np.random.default_rng(0), (settings.batch, settings.length)
    ids = rng.integers(0, config.vocab_size, (settings.batch, settings.length + 1))
    rows = {
        "tokens_BT": ids[:, :-1],
        "targets_BT": ids[:, 1:],
        "valid_BT": np.ones(shape),
        "documents_BT": np.ones(shape),
        "positions_BT": np.broadcast_to(np.arange(settings.length), shape),
        "bytes_B": np.full(settings.batch, 4 * settings.length),
    }
    batch = {name: jax.device_put(rows[name].astype(x.dtype), x.sharding) for name, x in program.batch.items()}
    start = time.perf_counter()
    with jax.set_mesh(program.mesh):
        compiled = program.step.lower(state, batch).compile()
    compiling = time.perf_counter() - start

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    return step, config, compiling


def flops_per_token(config: Any, length: int) -> float:
    """Of a training step; see the head of this file."""
    from transformer_zoo import registry, trees

    module = registry.module_of(config)
    flat = trees.flatten(registry.param_shapes(module.Model(config, task="causal-lm")))
    kernels = sum(leaf.size for path, leaf in flat.items() if path.endswith("kernel"))
    return 6 * (kernels + config.vocab_size * config.width) + 6 * config.num_layers * length * config.width


def peak_of(device: Any) -> Callable[[], float]:
    """A function that gives the peak FLOP/s: measured on a CPU, of the table elsewhere."""
    import jax
    import jax.numpy as jnp

    if device.platform != "cpu":
        if device.device_kind not in PEAK:
            sys.exit(f"error: the peak of {device.device_kind!r} is not known: known are {', '.join(PEAK)}")
        return lambda: PEAK[device.device_kind]
    size = 2048
    product = jax.jit(jnp.matmul)
    a, b = (jax.random.normal(jax.random.key(seed), (size, size)) for seed in range(2))
    product(a, b).block_until_ready()

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(8):
            product(a, b).block_until_ready()
        return 8 * 2 * size**3 / (time.perf_counter() - start)

    return measure


def write_config(config: Any, folder: str) -> None:
    """config.json in the published layout, from which the peer makes the same model."""
    from transformer_zoo import registry
    from transformer_zoo.checkpoints import config_map

    family = registry.module_of(config)
    (Path(folder) / "config.json").write_text(json.dumps(config_map.write(family, config, "causal-lm", "float32")))


def serve_torch(pipe: Any, folder: str, settings: Settings) -> None:
    """The reference library as people train with it: fused attention, the loss it computes itself, fused AdamW."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    tokens = torch.randint(0, model.config.vocab_size, (settings.batch, settings.length))
    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.dtype == "bfloat16")
    pipe.send(f"transformers {transformers.__version__} (torch {torch.__version__})")
    while pipe.recv():
        start = time.perf_counter()
        with cast:
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pipe.send(time.perf_counter() - start)


if __name__ == "__main__":
    use_huge_pages()  # as train.py does
    main(tyro.cli(Settings, description=__doc__))
