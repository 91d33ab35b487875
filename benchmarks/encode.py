"""The speed of encoding: tokens a second of an encoder's forward pass, compared with the reference library.

    python benchmarks/encode.py --peer torch
    python benchmarks/encode.py --model bert-large-uncased --batch 8 --length 512 --dtype bfloat16

Random tokens in full rows, no dropout. The outputs are all hidden states and, where there is a pooler, its output. We
and the peer take turns, each in its own process, idle while the other one runs. The peer has the same weights, and its
output is compared with ours. Utilisation is relative to the device's peak, from `peak.peak_of`.
"""

import dataclasses
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import peers
import rates
import tyro
from cases import Setting
from peak import forward_flops, peak_of

from transformer_zoo import tables
from transformer_zoo.pages import use_huge_pages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = "bert-base-uncased"
    """A preset, with random weights; or a folder with published ones."""
    batch: int = 16
    """Rows."""
    length: int = 128
    """Tokens in a row."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of parameters and computation."""
    repeats: int = 9
    """Calls that are timed."""
    peer: Literal["none", "torch"] = "none"
    """torch: the reference library with fused attention, on as many threads as there are cores."""


def main(settings: Settings) -> None:
    import jax
    import numpy as np
    from programs import Encode

    import transformer_zoo as zoo

    if settings.model in zoo.presets():
        preset = zoo.presets()[settings.model]
        m = zoo.from_config(preset.family, preset.config, task="base", param_dtype=settings.dtype, dtype=settings.dtype)
    elif os.path.isdir(settings.model):
        m = zoo.from_pretrained(settings.model, task="base", param_dtype=settings.dtype, dtype=settings.dtype)
    else:
        sys.exit(f"error: {settings.model!r} is neither a folder nor one of {', '.join(zoo.presets())}")
    program = Encode(m.model, m.params, settings.length)
    setting = Setting(batch=settings.batch, unroll=m.config.num_layers)
    compiling, _ = program.prepare(setting)
    ours = functools.partial(program.run, setting, 1)

    calls: dict[str, Callable[[], float]] = {f"transformer_zoo (jax {jax.__version__})": ours}
    if settings.peer == "torch":
        with tempfile.TemporaryDirectory() as folder:
            zoo.save_pretrained(folder, m)
            name, ask = peers.start(serve_torch, folder, program.tokens(settings.batch), settings.dtype)
        calls[name] = functools.partial(ask, "read")
        hidden_BTD = np.asarray(program.read(setting).hidden_BTD, np.float32)
        difference = np.abs(ask("hidden states") - hidden_BTD).max() / np.abs(hidden_BTD).max()

    peak = peak_of(jax.devices()[0])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    peaks: list[float] = []
    for turn in range(settings.repeats + 1):
        for name, call in calls.items():
            peaks.append(peak())
            taken = call()
            if turn:  # the first turn is a warm-up
                seconds[name].append(taken)

    tokens = settings.batch * settings.length
    flops, best = forward_flops(m.model, settings.length) * settings.batch, statistics.median(peaks)
    size = f"{settings.batch} x {settings.length} tokens"
    kind = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    title = f"{settings.model}, {settings.dtype}, {size}, {kind}"
    console = tables.console()
    tables.show(console, rates.table(title, "a batch", seconds, tokens=tokens, flops=flops, peak=best, digits=3))
    console.print(f"{flops / 1e9:,.0f} GFLOP a batch; peak {best / 1e9:,.0f} GFLOP/s; compiled in {compiling:.0f} s.")
    if settings.peer != "none":
        console.print(f"Largest difference from the peer's output: {difference:.1e} of the largest number.")


def serve_torch(pipe: Any, folder: str, tokens_BT: Any, dtype: str) -> None:
    """The reference library as it is usually run: fused attention, no gradients."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokens = torch.as_tensor(tokens_BT).long()
    pipe.send(f"transformers {transformers.__version__} (torch {torch.__version__})")
    with torch.inference_mode():
        while question := pipe.recv():
            start = time.perf_counter()
            hidden = model(tokens).last_hidden_state
            taken = time.perf_counter() - start
            pipe.send(taken if question == "read" else hidden.float().numpy())


if __name__ == "__main__":
    use_huge_pages()  # as train.py does
    main(tyro.cli(Settings, description=__doc__))
