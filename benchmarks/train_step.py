"""The speed of training: tokens a second of the real train step, compared with the reference library.

    python benchmarks/train_step.py --peer torch
    python benchmarks/train_step.py --model bert-base-uncased --batch 8 --length 128 --peer torch
    python benchmarks/train_step.py --model gpt2-medium --batch 8 --length 1024 --dtype bfloat16

A step is forward, backward, clipping and AdamW, with dropout off, on random tokens; the loss is over the next token
for decoders, and over every token of the row for encoders, as in the reference. Model FLOPs are three times
`peak.forward_flops`, for forward and backward. Utilisation is relative to the device's peak: on a CPU a matrix product
measured in the same process, in turn with the steps; on accelerators the makers' figures.
"""

import dataclasses
import functools
import os
import statistics
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import peers
import rates
import tyro
from cases import PeerSetting, Setting
from peak import peak_of

from transformer_zoo import tables
from transformer_zoo.pages import use_huge_pages

if TYPE_CHECKING:
    from programs import Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = "gpt2"
    """A preset, with random weights."""
    batch: int = 4
    """Rows."""
    length: int = 256
    """Tokens in a row."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters and optimizer are float32."""
    unroll: int | None = None
    """Layers in one iteration of the scan. None: all of them on a CPU, else 1."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes."""
    logits_chunks: int = 1
    """Parts of a row whose logits are computed at a time."""
    repeats: int = 7
    """Steps that are timed."""
    peer: Literal["none", "torch"] = "none"
    """torch: the reference library, eager, on as many threads as there are cores."""


def main(settings: Settings) -> None:
    import jax

    console, tokens = tables.console(), settings.batch * settings.length
    peak = peak_of(jax.devices()[0])
    step, setting, compiling = build(settings)
    ours = functools.partial(step.run, setting, 1)
    steps: dict[str, Callable[[], float]] = {f"transformer_zoo (jax {jax.__version__})": ours}
    if settings.peer == "torch":
        name, ask = peers.start(serve_torch, step.published(), settings)
        steps[name] = functools.partial(ask, "step")

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks: list[float] = []
    for turn in range(settings.repeats + 1):
        for name, call in steps.items():
            taken = call()
            if turn:  # the first turn is a warm-up
                seconds[name].append(taken)
        peaks.append(peak())

    flops, best = step.flops() * settings.batch, statistics.median(peaks)
    kind, cores = jax.devices()[0].device_kind, os.cpu_count()
    size = f"{settings.batch} x {settings.length} tokens"
    title = f"{settings.model}, {settings.dtype}, {size}, {kind}, {cores} cores"
    tables.show(console, rates.table(title, "a step", seconds, tokens=tokens, flops=flops, peak=best, digits=2))
    console.print(
        f"{flops / 1e9:,.0f} GFLOP a step; peak {best / 1e9:,.0f} GFLOP/s, "
        f"{'measured in turn' if jax.default_backend() == 'cpu' else 'by the table'}; compiled in {compiling:.0f} s."
    )


def build(settings: Settings) -> tuple["Train", Setting, float]:
    """The train step, its setting, and the seconds of compiling."""
    import jax
    from programs import Train

    import transformer_zoo as zoo

    if settings.model not in zoo.presets():
        sys.exit(f"error: there is no preset {settings.model!r}: choose one of {', '.join(zoo.presets())}")
    config = zoo.presets()[settings.model].config
    unroll = settings.unroll or (config.num_layers if jax.default_backend() == "cpu" else 1)
    chosen = {name: getattr(settings, name) for name in ("batch", "remat", "logits_chunks")}
    step, setting = Train(config, length=settings.length, dtype=settings.dtype), Setting(unroll=unroll, **chosen)
    return step, setting, step.prepare(setting)[0]


def serve_torch(pipe: Any, config: dict[str, Any], settings: Settings) -> None:
    """The reference library as it is usually trained: fused attention, its own loss, fused AdamW."""
    import reference
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    step = reference.Train(config, length=settings.length, dtype=settings.dtype)
    pipe.send(f"transformers {transformers.__version__} (torch {torch.__version__})")
    while pipe.recv():
        pipe.send(step.run(PeerSetting(batch=settings.batch), 1))


if __name__ == "__main__":
    use_huge_pages()  # as train.py does
    main(tyro.cli(Settings, description=__doc__))
