"""How fast a model trains: tokens a second of the real train step, and of the reference library beside it.

    python benchmarks/train_step.py --peer torch
    python benchmarks/train_step.py --model bert-base-uncased --batch 8 --length 128 --peer torch
    python benchmarks/train_step.py --model gpt2-medium --batch 8 --length 1024 --dtype bfloat16

A step is forward, backward, clipping and AdamW, with dropout off, on random tokens; the loss is that of the next token
for decoders, and for encoders of every token of the row, as the reference computes it. Model FLOPs are those of
`peak.forward_flops`, three times for forward and backward. Utilisation is relative to the device's peak: on a CPU to a
matrix product measured in the same process, in turn with the steps; on accelerators to the makers' figures.
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
from peak import forward_flops, peak_of
from rich.console import Console
from rich.table import Table

from transformer_zoo.pages import use_huge_pages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = "gpt2"
    """A preset, with random weights."""
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
    ours, model, compiling = build(settings)
    steps: dict[str, Callable[[], float]] = {f"transformer_zoo (jax {jax.__version__})": ours}
    if settings.peer == "torch":
        with tempfile.TemporaryDirectory() as folder:
            write_config(model, folder)
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

    flops, best = 3 * forward_flops(model, settings.length) * tokens, statistics.median(peaks)
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
    """A function that takes a step and says how long it took, the model, and the seconds of compiling."""
    import jax
    import numpy as np

    import transformer_zoo as zoo
    from transformer_zoo import registry, training
    from transformer_zoo.config import Data, Run, Training
    from transformer_zoo.objectives import CausalLM, MaskedLM

    if settings.model not in zoo.presets():
        sys.exit(f"error: there is no preset {settings.model!r}: choose one of {', '.join(zoo.presets())}")
    config = zoo.presets()[settings.model].config
    config = dataclasses.replace(
        config, **{f.name: 0.0 for f in dataclasses.fields(config) if f.name.endswith("dropout")}
    )
    unroll = settings.unroll or (config.num_layers if jax.default_backend() == "cpu" else 1)
    causal = "causal-lm" in registry.module_of(config).TASKS
    run = Run(
        model=config,
        objective=CausalLM(logits_chunks=settings.pieces) if causal else MaskedLM(),
        compute=zoo.Compute(dtype=settings.dtype, unroll=unroll, remat=settings.remat),
        data=Data(length=settings.length),
        training=Training(batch_size=settings.batch),
    )
    program = training.prepare(run)
    state = program.begin(program.fresh(0), run)
    rng, shape = np.random.default_rng(0), (settings.batch, settings.length)
    ids = rng.integers(0, config.vocab_size, (settings.batch, settings.length + 1)).astype(np.int32)
    places = np.broadcast_to(np.arange(settings.length, dtype=np.int32), shape)
    rows = {"tokens_BT": ids[:, :-1], "valid_BT": np.ones(shape, bool)}
    if causal:
        rows |= {"targets_BT": ids[:, 1:], "documents_BT": np.ones(shape, np.int32), "positions_BT": places}
        rows |= {"bytes_B": np.full(settings.batch, 4 * settings.length, np.int32)}
    else:
        rows |= {"targets_BP": ids[:, 1:], "masked_BP": places, "weights_BP": np.ones(shape, np.float32)}
    batch = {name: jax.device_put(rows[name], x.sharding) for name, x in program.batch.items()}
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

    return step, program.model, compiling


def write_config(model: Any, folder: str) -> None:
    """config.json in the published layout, from which the peer makes the same model."""
    from transformer_zoo import registry
    from transformer_zoo.checkpoints import config_map

    settings = config_map.write(registry.module_of(model.config), model.config, model.task, "float32")
    (Path(folder) / "config.json").write_text(json.dumps(settings))


def serve_torch(pipe: Any, folder: str, settings: Settings) -> None:
    """The reference library as people train with it: fused attention, the loss it computes itself, fused AdamW."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0])(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    tokens = torch.randint(0, model.config.vocab_size, (settings.batch, settings.length))
    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.dtype == "bfloat16")
    pipe.send(f"transformers {transformers.__version__} (torch {torch.__version__})")
    while pipe.recv():
        start = time.perf_counter()
        with cast:
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pipe.send(time.perf_counter() - start)


if __name__ == "__main__":
    use_huge_pages()  # as train.py does
    main(tyro.cli(Settings, description=__doc__))
