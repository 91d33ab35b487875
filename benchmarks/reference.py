"""The reference library's programs, at their fastest on one device: fused attention, torch.compile.

They have the methods of the programs in `programs.py`. Only processes beside ours import torch.
"""

import functools
import gc
import time
from typing import Any

import peers
from cases import Case, PeerSetting

RATE = 0.15
"""Share of the tokens that a masked language model predicts."""


class Program:
    """A model in torch with random weights, and its compiled parts.

    Args:
        config: config.json, which names the class.
        dtype: precision of the parameters.
    """

    def __init__(self, config: dict[str, Any], dtype: str) -> None:
        import torch
        import transformers

        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # instead of running uncompiled without notice
        self.torch, self.device = torch, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model_class = getattr(transformers, config["architectures"][0])
        with self.device:
            self.model = model_class(transformers.AutoConfig.for_model(**config)).to(getattr(torch, dtype))
        self.whole = torch.compile(self.model, dynamic=False)
        self.blocks = [(block, _compiled(block)) for block in _blocks(self.model)]

    def part(self, setting: PeerSetting) -> Any:
        """The model to call, with the parts compiled that the setting names."""
        for block, compiled in self.blocks:
            block._compiled_call_impl = compiled if setting.compiled == "blocks" else None
        return self.whole if setting.compiled == "whole" else self.model

    def prepare(self, setting: PeerSetting) -> tuple[float, int | None]:
        """Compiles the program by running it. Returns the seconds, and the peak of the bytes in use in a second run."""
        self.free()
        start = time.perf_counter()
        self.run(setting, 1)
        compiling = time.perf_counter() - start
        if self.device.type != "cuda":
            return compiling, None
        self.torch.cuda.reset_peak_memory_stats()
        self.run(setting, 1)
        memory = self.torch.cuda.max_memory_allocated()
        self.free()
        return compiling, memory

    def free(self) -> None:
        """Frees the memory that a run, even a failed one, has left."""
        self.model.zero_grad()
        gc.collect()
        if self.device.type == "cuda":
            self.torch.cuda.empty_cache()

    def run(self, setting: PeerSetting, times: int) -> float:
        """Runs the program this number of times. Returns the seconds."""
        call = self.call(setting)
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            call()
        self.wait()
        return time.perf_counter() - start

    def call(self, setting: PeerSetting) -> Any:
        """A function that runs the program once."""
        raise NotImplementedError

    def wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def tokens(self, rows: int, length: int) -> Any:
        """Random ids."""
        return self.torch.randint(2, self.model.config.vocab_size, (rows, length), device=self.device)


class Train(Program):
    """The train step: the library's own loss, from the logits of all tokens; clipping, and fused AdamW."""

    def __init__(
        self, config: dict[str, Any], *, length: int, target: int = 0, masked: bool = False, dtype: str
    ) -> None:
        super().__init__(config | {"use_cache": False}, "float32")
        self.length, self.target, self.masked, self.dtype = length, target, masked, getattr(self.torch, dtype)
        self.model.train()
        self.optimizer = self.torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)

    def call(self, setting: PeerSetting) -> Any:
        torch, model = self.torch, self.part(setting)
        if setting.sparse:
            self.model.sparse_prediction = True
        tokens = self.tokens(setting.batch, self.length)
        labels = self.tokens(setting.batch, self.target) if self.target else tokens
        if self.masked:
            labels = labels.masked_fill(torch.rand(labels.shape, device=self.device) > RATE, -100)
        cast = torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

        def step() -> None:
            with cast:
                loss = model(input_ids=tokens, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

        return step


class Encode(Program):
    """An encoder's forward pass, without gradients."""

    def __init__(self, config: dict[str, Any], *, length: int, dtype: str) -> None:
        super().__init__(config, dtype)
        self.length = length
        self.model.eval()

    def call(self, setting: PeerSetting) -> Any:
        model, tokens = self.part(setting), self.tokens(setting.batch, self.length)

        def read() -> None:
            with self.torch.inference_mode():
                model(tokens)

        return read


class Decode(Program):
    """Greedy `generate`; no token ends a row."""

    def __init__(self, config: dict[str, Any], *, prompt: int, new: int, dtype: str) -> None:
        super().__init__(config, dtype)
        self.prompt, self.new = prompt, new
        self.model.eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0

    def call(self, setting: PeerSetting) -> Any:
        model, tokens = self.part(setting), self.tokens(setting.batch, self.prompt)
        settings = {"attention_mask": self.torch.ones_like(tokens), "do_sample": False, "max_new_tokens": self.new}
        if setting.cache == "static":
            settings["cache_implementation"] = "static"

        def write() -> None:
            with self.torch.inference_mode():
                answers = model.generate(tokens, **settings)
            if answers.shape[1] != self.prompt + self.new:
                raise ValueError(f"{answers.shape[1] - self.prompt} new tokens instead of {self.new}")

        return write


def _compiled(block: Any) -> Any:
    block.compile(dynamic=False)
    return block._compiled_call_impl


def _blocks(model: Any) -> list[Any]:
    """The layers: the members of the outermost lists of modules."""
    if type(model).__name__ == "ModuleList":
        return list(model)
    return [block for child in model.children() for block in _blocks(child)]


class Worker:
    """Answers the questions of `accelerator.py`, one case at a time."""

    def __init__(self) -> None:
        self.program: Program | None = None

    def begin(self, case: Case, config: dict[str, Any]) -> dict[str, Any]:
        """Makes the model."""
        import torch

        self.program = None
        torch._dynamo.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        dtype = "bfloat16"
        if case.kind == "train":
            self.program = Train(config, length=case.length, target=case.target, masked=case.masked, dtype=dtype)
        elif case.kind == "encode":
            self.program = Encode(config, length=case.length, dtype=dtype)
        else:
            self.program = Decode(config, prompt=case.length, new=case.new, dtype=dtype)
        return {"platform": self.program.device.type, "attention": self.program.model.config._attn_implementation}

    def prepare(self, setting: PeerSetting) -> dict[str, Any]:
        compiling, memory = self.program.prepare(setting)
        return {"compiling": compiling, "memory": memory}

    def time(self, setting: PeerSetting, seconds: float) -> dict[str, Any]:
        self.program.free()
        return {"seconds": peers.timed(functools.partial(self.program.run, setting), seconds)}
