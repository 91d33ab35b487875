"""The speed of generation: tokens per second of `zoo.generate`, compared with other libraries.

    python benchmarks/decode.py --peer torch ctranslate2
    python benchmarks/decode.py --model smollm2-135m --batch 8 --peer llama.cpp ctranslate2
    python benchmarks/decode.py --model gpt2-medium --batch 8 --prompt 128 --new 128
    python benchmarks/decode.py --model t5-small --batch 8 --prompt 128 --new 64 --peer torch flax --flax-python PYTHON
    python benchmarks/decode.py --model t5-small --batch 8 --prompt 128 --new 64 --beams 4 --peer torch

Greedy or beam search, with a cache; no token ends a row. A call is timed from the ids of the prompts, or of the
sources, to the ids of the answers, with prefill and without compilation. We and the peers take turns, each in its own
process, idle while another one runs. The peers have the same weights, and their tokens are compared with ours.

A step reads every weight once, and the keys and values of the tokens so far: at the rate at which this process reads
memory, measured in turn with the calls, no step takes less time than that. The last column is this bound's share of a
step.

CTranslate2 converts the reference library's files, for which it needs that library and torch. llama.cpp reads a GGUF
file of the families that `zoo.save_gguf` writes. Both have wheels for CPUs:

    pip install ctranslate2==4.8.5 xllamacpp gguf

The reference library's last models in JAX need an environment of their own, with the interpreter PYTHON:

    pip install transformers==4.57.6 jax==0.4.38 jaxlib==0.4.38 flax==0.10.2 tyro rich
"""

import dataclasses
import functools
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import peak
import peers
import tyro
from rich.console import Console
from rich.table import Table

# The peers' processes import this file too: jax is imported in functions, torch only in a peer's.

Call = Callable[[int], tuple[float, list[list[int]]]]
"""Number of tokens to generate -> (seconds, tokens)."""
PAUSE = 0.3
"""Seconds between two calls: the threads of some libraries wait for more work that long without sleeping."""


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
    peer: tuple[Literal["torch", "flax", "ctranslate2", "llama.cpp"], ...] = ()
    """On as many threads as there are cores. torch: generate() of the reference library; flax: that of its last models
    in JAX, in one compiled program; ctranslate2: OpenNMT's engine; llama.cpp: by the package xllamacpp, greedy only."""
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
    calls, names = {f"transformer_zoo\njax {jax.__version__}": ours}, []
    with tempfile.TemporaryDirectory() as folder:
        zoo.save_pretrained(folder, m)
        for peer in settings.peer:
            serve, python = SERVE[peer], settings.flax_python if peer == "flax" else None
            try:
                source = write_gguf(Path(folder), m, settings) if peer == "llama.cpp" else folder
            except ValueError as error:
                console.print(f"{peer} is left out: {error}", highlight=False)
                continue
            name, calls[name] = peers.start(serve, source, prompts.tolist(), settings, python=python)
            names.append(peer)
    results, rates = measure(calls, settings, peak.bandwidth_of(jax.devices()[0]))
    device, rate = jax.devices()[0].device_kind, statistics.median(rates)
    size = f"{settings.batch} x ({settings.prompt} + {settings.new}) tokens"
    search = "greedy" if settings.beams == 1 else f"{settings.beams} beams"
    console.print(f"{settings.model}, {search}, {settings.dtype}, {size}, {device}, {cores()} cores")
    needed = bytes_of_step(m.model, settings)
    console.print(table(results, names, settings, needed / rate))
    spread = f"{min(rates) / 1e9:.1f} to {max(rates) / 1e9:.1f}"
    console.print(f"A step reads {needed / 1e6:.0f} MB, and memory is read at {rate / 1e9:.1f} GB/s ({spread}):")
    console.print(f"a step takes at least {1e3 * needed / rate:.1f} ms.")
    console.print(f"The first call, which compiles, took {compiling:.1f} s.")
    mine, *others = (result.tokens for result in results.values())
    for peer, theirs in zip(names, others):
        console.print(f"{np.mean(np.equal(mine, theirs)):.0%} of the tokens of {peer} equal ours.")


def bytes_of_step(model: Any, settings: Settings) -> float:
    """The bytes that the mean step reads. The beams of a row attend to one source."""
    from transformer_zoo import registry

    rows, held = settings.batch * settings.beams, settings.new / 2
    if registry.is_encoder_decoder(model.config):
        return peak.step_bytes(model, rows, held, source=settings.prompt / settings.beams)
    return peak.step_bytes(model, rows, settings.prompt + held)


def write_gguf(folder: Path, m: Any, settings: Settings) -> str:
    """A GGUF file of the model. llama.cpp answers with text: token 17 is spelt " 17".

    Raises:
        ValueError: these files cannot hold the model, or llama.cpp lacks the search.
    """
    import tokenizers

    import transformer_zoo as zoo
    from transformer_zoo.data.tokenizers import Tokenizer

    if settings.beams > 1:
        raise ValueError("it has no beam search")
    # A file must have a merge: that of tokens 1 and 2 is token 0.
    vocab = {f"\u0120{i}": i for i in range(1, m.config.vocab_size)} | {"\u01201\u01202": 0}
    spelling = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("\u01201", "\u01202")]))
    spelling.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = tokenizers.decoders.ByteLevel()
    numbers = folder / "numbers"
    numbers.mkdir()
    spelling.save(str(numbers / "tokenizer.json"))
    zoo.save_gguf(file := folder / "model.gguf", m.replace(tokenizer=Tokenizer.load(numbers)), dtype=settings.dtype)
    return str(file)


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


def measure(
    calls: dict[str, Call], settings: Settings, bandwidth: Callable[[], float]
) -> tuple[dict[str, Result], list[float]]:
    """Times the calls, in turn; and measures the bytes a second that memory is read at."""
    for call in calls.values():  # a warm-up
        call(1), call(settings.new)
    results, rates = {name: Result() for name in calls}, []
    for _ in range(settings.repeats):
        rates.append(bandwidth())
        for (name, call), result in zip(calls.items(), results.values()):
            time.sleep(PAUSE)
            result.first.append(call(1)[0])
            seconds, result.tokens = call(settings.new)
            result.whole.append(seconds)
            if any(len(row) != settings.new for row in result.tokens):
                sys.exit(f"error: a row of {name} lacks some of the {settings.new} new tokens: its times do not count")
        time.sleep(PAUSE)
    return results, rates


def table(results: dict[str, Result], names: list[str], settings: Settings, bound: float) -> Table:
    """Medians with minima and maxima below them, and their ratios.

    Args:
        names: the peers, whose results follow ours.
        bound: seconds that a step takes at least.
    """
    lines = Table("")
    for column in ("tokens/s,\nprefill included", "ms, first\ntoken", "ms, further\nsteps, each", "of the\nbound"):
        lines.add_column(column, justify="right")
    medians = []
    for name, result in results.items():
        rates = [settings.batch * settings.new / seconds for seconds in result.whole]
        first = [1e3 * seconds for seconds in result.first]
        steps = [1e3 * (b - a) / max(1, settings.new - 1) for a, b in zip(result.first, result.whole)]
        columns = (rates, first, steps)
        medians.append([statistics.median(c) for c in columns])
        cells = (f"{median:.1f}\n{min(c):.1f} to {max(c):.1f}" for median, c in zip(medians[-1], columns))
        lines.add_row(name, *cells, f"{1e3 * bound / medians[-1][-1]:.0%}")
    (rate, *times), *others = medians
    if len(others) > 1:
        rates, *columns = zip(*others)
        names, others = [*names, "the best peer"], [*others, [max(rates), *map(min, columns)]]
    for peer, (peer_rate, *peer_times) in zip(names, others):
        ratios = [rate / peer_rate, *(theirs / mine for mine, theirs in zip(times, peer_times))]
        lines.add_row(f"times faster than {peer}", *(f"{ratio:.2f}" for ratio in ratios), style="bold")
    return lines


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve_torch(pipe: Any, folder: str, prompts: list[list[int]], settings: Settings) -> None:
    """The reference library at its fastest: fused attention, a cache, no gradients, all cores."""
    import torch
    import transformers

    torch.set_num_threads(cores())
    is_encoder_decoder = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if is_encoder_decoder else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=getattr(torch, settings.dtype)).eval()
    model.generation_config.eos_token_id = None  # no token ends a row
    tokens = torch.tensor(prompts)
    pipe.send(f"transformers {transformers.__version__}\ntorch {torch.__version__}")
    with torch.inference_mode():
        while new := pipe.recv():
            start = time.perf_counter()
            answers = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                num_beams=settings.beams,
                max_new_tokens=new,
            )
            new_tokens = answers[:, 1 if is_encoder_decoder else tokens.shape[1] :]
            pipe.send((time.perf_counter() - start, new_tokens.tolist()))


def serve_flax(pipe: Any, folder: str, prompts: list[list[int]], settings: Settings) -> None:
    """The library's last models in JAX: all of generate() compiled as one program."""
    import jax
    import numpy as np
    import transformers

    is_encoder_decoder = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = transformers.FlaxAutoModelForSeq2SeqLM if is_encoder_decoder else transformers.FlaxAutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=getattr(jax.numpy, settings.dtype))
    params = jax.tree.map(lambda x: jax.numpy.asarray(x, settings.dtype), model.params)
    model.generation_config.eos_token_id = -1  # no token ends a row, so that none needs to be suppressed
    model.generation_config.min_length = -1
    model.generation_config.pad_token_id = 0

    @functools.partial(jax.jit, static_argnames="new")
    def generate(params: Any, tokens: Any, new: int) -> Any:
        search = {"do_sample": False, "num_beams": settings.beams, "max_new_tokens": new}
        return model.generate(tokens, attention_mask=jax.numpy.ones_like(tokens), params=params, **search).sequences

    tokens = np.asarray(prompts, np.int32)
    pipe.send(f"transformers {transformers.__version__}\njax {jax.__version__}")
    while new := pipe.recv():
        start = time.perf_counter()
        answers = np.asarray(generate(params, tokens, new))
        new_tokens = answers[:, 1 if is_encoder_decoder else tokens.shape[1] :]
        pipe.send((time.perf_counter() - start, new_tokens.tolist()))


def serve_ctranslate2(pipe: Any, folder: str, prompts: list[list[int]], settings: Settings) -> None:
    """OpenNMT's engine, on all cores."""
    import ctranslate2
    import tokenizers
    import transformers
    from ctranslate2.converters import TransformersConverter

    config = transformers.AutoConfig.from_pretrained(folder)

    class Converter(TransformersConverter):
        def load_tokenizer(self, *arguments: Any, **more: Any) -> Any:
            vocab = {str(i): i for i in range(config.vocab_size)}  # token 17 is spelt "17"
            spelling = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="0"))
            special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "0")
            return transformers.PreTrainedTokenizerFast(tokenizer_object=spelling, **special)

    engine = ctranslate2.Translator if config.is_encoder_decoder else ctranslate2.Generator
    converted = Converter(folder).convert(os.path.join(folder, "ctranslate2"), quantization=settings.dtype)
    model = engine(converted, device="cpu", compute_type=settings.dtype, inter_threads=1, intra_threads=cores())
    rows = [[str(token) for token in row] for row in prompts]
    search = {"beam_size": settings.beams, "end_token": []}  # no token ends a row
    pipe.send(f"ctranslate2 {ctranslate2.__version__}")
    while new := pipe.recv():
        start = time.perf_counter()
        if config.is_encoder_decoder:
            lengths = {"min_decoding_length": 0, "max_decoding_length": new, "max_input_length": 0}
            answers = [result.hypotheses[0] for result in model.translate_batch(rows, **lengths, **search)]
        else:
            lengths = {"min_length": 0, "max_length": new, "include_prompt_in_result": False}
            answers = [result.sequences[0] for result in model.generate_batch(rows, **lengths, **search)]
        seconds = time.perf_counter() - start
        pipe.send((seconds, [[int(token) for token in answer] for answer in answers]))


def serve_llama_cpp(pipe: Any, file: str, prompts: list[list[int]], settings: Settings) -> None:
    """llama.cpp, on all cores, with a slot for each row."""
    import importlib.metadata

    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path, options.verbosity = file, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = cores()
    options.n_parallel, options.n_ctx = len(prompts), len(prompts) * (settings.prompt + settings.new)
    stored = {"float32": xllamacpp.ggml_type.GGML_TYPE_F32, "bfloat16": xllamacpp.ggml_type.GGML_TYPE_BF16}
    options.cache_type_k = options.cache_type_v = stored[settings.dtype]
    server = xllamacpp.Server(options)
    request = {"prompt": prompts, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
    pipe.send(f"llama.cpp, xllamacpp {importlib.metadata.version('xllamacpp')}")
    while new := pipe.recv():
        start = time.perf_counter()
        answers = server.handle_completions(request | {"max_tokens": new})["choices"]
        seconds = time.perf_counter() - start
        texts = [re.sub(r"\b1 2\b", "0", answer["text"]) for answer in answers]
        pipe.send((seconds, [[int(token) for token in text.split()] for text in texts]))


SERVE = {"torch": serve_torch, "flax": serve_flax, "ctranslate2": serve_ctranslate2, "llama.cpp": serve_llama_cpp}

if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
