"""How fast a decoder writes: tokens per second of `zoo.generate`, and of the reference library beside it.

    python benchmarks/decode.py --peer torch
    python benchmarks/decode.py --model gpt2-medium --batch 8 --prompt 128 --new 128

Greedy, with a cache, and nothing ends a row early. A call is timed from the prompts' ids to the answers' ids, prefill
included; compiling is apart. Ours and the peer take turns, each in its own process, idle while the
other one runs. The peer has the very same weights, and what it writes is compared.
"""

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import peers
import tyro
from rich.console import Console
from rich.table import Table

# The peer's process reads this file too: functions import jax, and only the peer's imports torch.

Call = Callable[[int], tuple[float, list[list[int]]]]
"""How many tokens to write -> (seconds, the tokens)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = "gpt2"
    """A preset, with random weights; or a folder with published ones."""
    batch: int = 1
    """Rows."""
    prompt: int = 32
    """Tokens in a prompt."""
    new: int = 96
    """Tokens to write in each row."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of parameters and computation."""
    repeats: int = 7
    """Calls that are timed."""
    peer: Literal["none", "torch"] = "none"
    """torch: generate() of the reference library, on as many threads as there are cores."""


def main(settings: Settings) -> None:
    import jax
    import numpy as np

    import transformer_zoo as zoo

    console, m = Console(), load(settings)
    prompts = np.random.default_rng(0).integers(0, m.config.vocab_size, (settings.batch, settings.prompt))

    def ours(new: int) -> tuple[float, list[list[int]]]:
        start = time.perf_counter()
        answers = zoo.generate(m, prompts, max_new_tokens=new)
        return time.perf_counter() - start, answers.tolist()

    compiling, _ = ours(settings.new)
    calls = {f"transformer_zoo\njax {jax.__version__}": ours}
    if settings.peer == "torch":
        with tempfile.TemporaryDirectory() as folder:
            zoo.save_pretrained(folder, m)
            name, calls[name] = peers.start(serve_torch, folder, prompts.tolist(), settings.dtype)
    results = measure(calls, settings)
    device, cores = jax.devices()[0].device_kind, os.cpu_count()
    size = f"{settings.batch} x ({settings.prompt} + {settings.new}) tokens"
    console.print(f"{settings.model}, {settings.dtype}, {size}, {device}, {cores} cores")
    console.print(table(results, settings))
    console.print(f"The first call, which compiles, took {compiling:.1f} s.")
    if settings.peer != "none":
        mine, theirs = (result.tokens for result in results.values())
        console.print(f"Of the peer's tokens {np.mean(np.equal(mine, theirs)):.0%} are ours.")


def load(settings: Settings) -> Any:
    """The model, which no token ends."""
    import transformer_zoo as zoo

    dtypes = {"dtype": settings.dtype, "param_dtype": settings.dtype}
    if os.path.isdir(settings.model):
        m = zoo.from_pretrained(settings.model, task="causal-lm", **dtypes)
    elif settings.model in zoo.presets():
        preset = zoo.presets()[settings.model]
        m = zoo.from_config(preset.family, preset.config, task="causal-lm", **dtypes)
    else:
        sys.exit(f"error: {settings.model!r} is no folder and no preset: choose one of {', '.join(zoo.presets())}")
    config = dataclasses.replace(m.config, eos_id=None)
    return dataclasses.replace(m, model=m.model.clone(config=config), config=config)


@dataclasses.dataclass
class Result:
    first: list[float] = dataclasses.field(default_factory=list)
    """Seconds of the calls for one token."""
    whole: list[float] = dataclasses.field(default_factory=list)
    """Seconds of the calls for all of them."""
    tokens: list[list[int]] = dataclasses.field(default_factory=list)


def measure(calls: dict[str, Call], settings: Settings) -> dict[str, Result]:
    """What each takes, in turn."""
    for call in calls.values():  # a warm-up
        call(1), call(settings.new)
    results = {name: Result() for name in calls}
    for _ in range(settings.repeats):
        for result, call in zip(results.values(), calls.values()):
            result.first.append(call(1)[0])
            seconds, result.tokens = call(settings.new)
            result.whole.append(seconds)
    return results


def table(results: dict[str, Result], settings: Settings) -> Table:
    """Medians, with least and largest below them, and how they compare."""
    lines = Table("")
    for column in ("tokens/s,\nprefill included", "ms, first\ntoken", "ms, further\nsteps, each"):
        lines.add_column(column, justify="right")
    medians = []
    for name, result in results.items():
        rates = [settings.batch * settings.new / seconds for seconds in result.whole]
        first = [1e3 * seconds for seconds in result.first]
        steps = [1e3 * (b - a) / max(1, settings.new - 1) for a, b in zip(result.first, result.whole)]
        columns = (rates, first, steps)
        lines.add_row(name, *(f"{statistics.median(c):.1f}\n{min(c):.1f} to {max(c):.1f}" for c in columns))
        medians.append([statistics.median(c) for c in columns])
    if len(medians) == 2:
        (rate, *times), (peer_rate, *peer_times) = medians
        ratios = [rate / peer_rate, *(theirs / mine for mine, theirs in zip(times, peer_times))]
        lines.add_row("times faster than the peer", *(f"{ratio:.2f}" for ratio in ratios), style="bold")
    return lines


def serve_torch(pipe: Any, folder: str, prompts: list[list[int]], dtype: str) -> None:
    """The reference library as it is best: fused attention, a cache, no gradients, all cores."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokens = torch.tensor(prompts)
    pipe.send(f"transformers {transformers.__version__}\ntorch {torch.__version__}")
    with torch.inference_mode():
        while new := pipe.recv():
            start = time.perf_counter()
            answers = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=new, min_new_tokens=new
            )
            pipe.send((time.perf_counter() - start, answers[:, tokens.shape[1] :].tolist()))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
