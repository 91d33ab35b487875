"""The speed of generation: tokens per second of `zoo.generate`, compared with the reference library.

    python benchmarks/decode.py --peer torch
    python benchmarks/decode.py --model gpt2-medium --batch 8 --prompt 128 --new 128
    python benchmarks/decode.py --model t5-small --batch 8 --prompt 128 --new 64 --peer torch flax --flax-python PYTHON
    python benchmarks/decode.py --model t5-small --batch 8 --prompt 128 --new 64 --beams 4 --peer torch

Greedy or beam search, with a cache; no token ends a row. A call is timed from the ids of the prompts, or of the
sources, to the ids of the answers, with prefill and without compilation. We and the peers take turns, each in its own
process, idle while another one runs. The peers have the same weights, and their tokens are compared with ours.

The library's last models in JAX need an environment of their own, with the interpreter PYTHON:

    pip install transformers==4.57.6 jax==0.4.38 jaxlib==0.4.38 flax==0.10.2 tyro rich
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
import tyro
from rich.console import Console
from rich.table import Table

# The peers' processes import this file too: jax is imported in functions, torch only in a peer's.

Call = Callable[[int], tuple[float, list[list[int]]]]
"""Number of tokens to generate -> (seconds, tokens)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = "gpt2"
    """A preset, with random weights; or a folder with published ones."""
    batch: int = 1
    """Rows."""
    prompt: int = 32
    """Tokens in a prompt, or in a source."""
    new: int = 96
    """Tokens to generate in each row."""
    beams: int = 1
    """Beams of the search; 1 is greedy."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of parameters and computation."""
    repeats: int = 7
    """Calls that are timed."""
    peer: tuple[Literal["torch", "flax"], ...] = ()
    """generate() of the reference library. torch: on as many threads as there are cores; flax: its last models in JAX,
    in one compiled program."""
    flax_python: str | None = None
    """The interpreter of the environment for flax. None: this one."""


def main(settings: Settings) -> None:
    import jax
    import numpy as np

    import transformer_zoo as zoo

    console, m = Console(), load(settings)
    prompts = np.random.default_rng(0).integers(0, m.config.vocab_size, (settings.batch, settings.prompt))
    sampling = zoo.Greedy() if settings.beams == 1 else zoo.Beam(num_beams=settings.beams)

    def ours(new: int) -> tuple[float, list[list[int]]]:
        start = time.perf_counter()
        answers = zoo.generate(m, prompts, max_new_tokens=new, sampling=sampling)
        return time.perf_counter() - start, answers.tolist()

    compiling, _ = ours(settings.new)
    calls = {f"transformer_zoo\njax {jax.__version__}": ours}
    with tempfile.TemporaryDirectory() as folder:
        zoo.save_pretrained(folder, m)
        for peer in settings.peer:
            serve, python = {"torch": (serve_torch, None), "flax": (serve_flax, settings.flax_python)}[peer]
            name, calls[name] = peers.start(
                serve, folder, prompts.tolist(), settings.beams, settings.dtype, python=python
            )
    results = measure(calls, settings)
    device = jax.devices()[0].device_kind
    size = f"{settings.batch} x ({settings.prompt} + {settings.new}) tokens"
    search = "greedy" if settings.beams == 1 else f"{settings.beams} beams"
    console.print(f"{settings.model}, {search}, {settings.dtype}, {size}, {device}, {cores()} cores")
    console.print(table(results, settings))
    console.print(f"The first call, which compiles, took {compiling:.1f} s.")
    mine, *others = (result.tokens for result in results.values())
    for peer, theirs in zip(settings.peer, others):
        console.print(f"{np.mean(np.equal(mine, theirs)):.0%} of the tokens of {peer} equal ours.")


def load(settings: Settings) -> Any:
    """The model, without a token that ends a row."""
    import jax
    import numpy as np

    import transformer_zoo as zoo

    dtypes = {"dtype": settings.dtype, "param_dtype": settings.dtype}
    if os.path.isdir(settings.model):
        m = zoo.from_pretrained(settings.model, **dtypes)
    elif settings.model in zoo.presets():
        preset = zoo.presets()[settings.model]
        m = zoo.from_config(preset.family, preset.config, **dtypes)
        # With random signs, also of the norms: a fresh model whose output layer is tied to its embeddings repeats the
        # last token, and so would a wrong one.
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: jax.numpy.where(rng.random(x.shape) < 0.5, x, -x), m.params)
        m = dataclasses.replace(m, params=params)
    else:
        sys.exit(f"error: {settings.model!r} is no folder and no preset: choose one of {', '.join(zoo.presets())}")
    return m.replace(token_ids=dataclasses.replace(zoo.TokenIds.of_model(m), eos=()))


@dataclasses.dataclass
class Result:
    first: list[float] = dataclasses.field(default_factory=list)
    """Seconds of the calls for one token."""
    whole: list[float] = dataclasses.field(default_factory=list)
    """Seconds of the calls for all tokens."""
    tokens: list[list[int]] = dataclasses.field(default_factory=list)


def measure(calls: dict[str, Call], settings: Settings) -> dict[str, Result]:
    """Times the calls, in turn."""
    for call in calls.values():  # a warm-up
        call(1), call(settings.new)
    results = {name: Result() for name in calls}
    for _ in range(settings.repeats):
        for (name, call), result in zip(calls.items(), results.values()):
            result.first.append(call(1)[0])
            seconds, result.tokens = call(settings.new)
            result.whole.append(seconds)
            if any(len(row) != settings.new for row in result.tokens):
                sys.exit(f"error: a row of {name} lacks some of the {settings.new} new tokens: its times do not count")
    return results


def table(results: dict[str, Result], settings: Settings) -> Table:
    """Medians with minima and maxima below them, and their ratios."""
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
    (rate, *times), *others = medians
    for peer, (peer_rate, *peer_times) in zip(settings.peer, others):
        ratios = [rate / peer_rate, *(theirs / mine for mine, theirs in zip(times, peer_times))]
        lines.add_row(f"times faster than {peer}", *(f"{ratio:.2f}" for ratio in ratios), style="bold")
    return lines


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve_torch(pipe: Any, folder: str, prompts: list[list[int]], beams: int, dtype: str) -> None:
    """The reference library at its fastest: fused attention, a cache, no gradients, all cores."""
    import torch
    import transformers

    torch.set_num_threads(cores())
    is_encoder_decoder = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if is_encoder_decoder else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None  # no token ends a row
    tokens = torch.tensor(prompts)
    pipe.send(f"transformers {transformers.__version__}\ntorch {torch.__version__}")
    with torch.inference_mode():
        while new := pipe.recv():
            start = time.perf_counter()
            answers = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False, num_beams=beams, max_new_tokens=new
            )
            new_tokens = answers[:, 1 if is_encoder_decoder else tokens.shape[1] :]
            pipe.send((time.perf_counter() - start, new_tokens.tolist()))


def serve_flax(pipe: Any, folder: str, prompts: list[list[int]], beams: int, dtype: str) -> None:
    """The library's last models in JAX: all of generate() compiled as one program."""
    import jax
    import numpy as np
    import transformers

    is_encoder_decoder = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = transformers.FlaxAutoModelForSeq2SeqLM if is_encoder_decoder else transformers.FlaxAutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=getattr(jax.numpy, dtype))
    params = jax.tree.map(lambda x: jax.numpy.asarray(x, dtype), model.params)
    model.generation_config.eos_token_id = -1  # no token ends a row, so that none needs to be suppressed
    model.generation_config.min_length = -1
    model.generation_config.pad_token_id = 0

    @functools.partial(jax.jit, static_argnames="new")
    def generate(params: Any, tokens: Any, new: int) -> Any:
        settings = {"do_sample": False, "num_beams": beams, "max_new_tokens": new}
        return model.generate(tokens, attention_mask=jax.numpy.ones_like(tokens), params=params, **settings).sequences

    tokens = np.asarray(prompts, np.int32)
    pipe.send(f"transformers {transformers.__version__}\njax {jax.__version__}")
    while new := pipe.recv():
        start = time.perf_counter()
        answers = np.asarray(generate(params, tokens, new))
        new_tokens = answers[:, 1 if is_encoder_decoder else tokens.shape[1] :]
        pipe.send((time.perf_counter() - start, new_tokens.tolist()))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
