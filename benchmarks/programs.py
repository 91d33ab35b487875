"""Our programs: the train step, an encoder's forward pass and decoding, each on one device.

Each is made for one model and has the same methods: `prepare` compiles it for a setting, `run` runs it a number of
times and returns the seconds.
"""

import dataclasses
import functools
import re
import time
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peers
from cases import Case, Setting
from peak import copy_rate, forward_flops, product_rate, step_bytes

import transformer_zoo as zoo
from transformer_zoo import registry, training
from transformer_zoo.checkpoints import config_map
from transformer_zoo.config import Data, Run
from transformer_zoo.config import Training as Loop
from transformer_zoo.generation import generate
from transformer_zoo.nn import kernels
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.stack import STACKED, Layers
from transformer_zoo.objectives import CausalLM, MaskedLM, Seq2SeqLM


class Train:
    """The real train step: forward, backward, clipping and AdamW, with dropout off, on random tokens.

    Parameters and optimizer are float32. The state is passed on from one setting to the next, and made once.

    Args:
        length: tokens in a row, or in a source.
        target: tokens in a target.
        masked: an encoder computes logits of 15 % of the tokens, not of all.
        dtype: precision of the computation.
    """

    def __init__(self, config: Any, *, length: int, target: int = 0, masked: bool = False, dtype: str) -> None:
        self.config, self.dtype = without_dropout(config), dtype
        self.length, self.target, self.masked = length, target, masked
        self.compiled: dict[Setting, tuple[training.Program, Run, Any]] = {}
        self.state: Any = None
        self.metrics: Any = None

    def prepare(self, setting: Setting) -> tuple[float, int | None]:
        """Compiles the step. Returns the seconds of compilation, and the bytes that the step needs."""
        compute = compute_of(setting, self.dtype)
        run = Run(
            model=self.config, objective=self._objective(setting), compute=compute, data=Data(length=self.length),
            training=Loop(batch_size=setting.batch),
        )  # fmt: skip
        program = training.prepare(run, jax.devices()[:1])
        start = time.perf_counter()
        with jax.set_mesh(program.mesh):
            compiled = program.step.lower(program.state, self._shapes(program)).compile()
        self.compiled[setting] = program, run, compiled
        return time.perf_counter() - start, memory_of(compiled)

    def run(self, setting: Setting, steps: int) -> float:
        """Runs this number of steps. Returns their seconds.

        Raises:
            FloatingPointError: a loss or gradient is not finite.
        """
        program, run, compiled = self.compiled[setting]
        batch = rows(self._shapes(program), self.config.vocab_size)
        state = program.begin(program.fresh(0), run) if self.state is None else self.state
        self.state = None  # donated, even to a step that fails
        jax.block_until_ready((state, batch))
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - start
        self.state = state
        if int(metrics["skipped"]):
            raise FloatingPointError("loss or gradients are not finite, and the step was skipped")
        return seconds

    @property
    def model(self) -> Any:
        return self._objective(Setting(batch=1)).model(self.config, zoo.Compute())

    def published(self) -> dict[str, Any]:
        """config.json, from which the reference library makes the same model."""
        return published(self.model)

    def flops(self, masked: bool | None = None) -> float:
        """FLOPs of a step, a row: three times those of the forward pass."""
        masked = self.masked if masked is None else masked
        scored = MaskedLM().shapes(1, self.length)["masked_BP"].shape[1] if masked else None
        return 3 * forward_flops(self.model, self.length, target=self.target, predicted=scored)

    def _objective(self, setting: Setting) -> Any:
        if registry.is_encoder_decoder(self.config):
            return Seq2SeqLM(target_length=self.target, logits_chunks=setting.logits_chunks)
        causal = "causal-lm" in registry.module_of(self.config).PUBLISHED.tasks
        return CausalLM(logits_chunks=setting.logits_chunks) if causal else MaskedLM()

    def _shapes(self, program: training.Program) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch. To predict all tokens of a row, there are as many masked positions as tokens."""
        if self.masked:
            return program.batch
        per_token = lambda x: jax.ShapeDtypeStruct((x.shape[0], self.length), x.dtype, sharding=x.sharding)
        return {name: per_token(x) if name.endswith("_BP") else x for name, x in program.batch.items()}


def rows(shapes: dict[str, jax.ShapeDtypeStruct], vocab_size: int) -> dict[str, jax.Array]:
    """A batch of these shapes: random tokens in full rows, one document a row."""
    rng = np.random.default_rng(0)

    def masked_positions(shape: tuple[int, ...]) -> np.ndarray:
        length = shapes["tokens_BT"].shape[1]
        return np.stack([np.sort(rng.permutation(length)[: shape[1]]) for _ in range(shape[0])])

    make = {
        "tokens|source|targets?": lambda shape: rng.integers(2, vocab_size, shape),
        r"valid|weights|(\w+_)?documents": np.ones,
        "positions": lambda shape: np.broadcast_to(np.arange(shape[-1]), shape),
        "masked": masked_positions,
        "bytes": lambda shape: np.full(shape, 4 * shapes["tokens_BT"].shape[1]),
        "too_long": np.zeros,
    }

    def array(name: str, x: jax.ShapeDtypeStruct) -> jax.Array:
        kind = name.rpartition("_")[0]
        values = next(function for pattern, function in make.items() if re.fullmatch(pattern, kind))(x.shape)
        return jax.device_put(np.asarray(values, x.dtype), x.sharding)

    return {name: array(name, x) for name, x in shapes.items()}


class Encode:
    """The forward pass of an encoder over full rows of random tokens: all hidden states, and the pooler's output."""

    def __init__(self, model: Any, params: Any, length: int) -> None:
        self.model, self.params, self.length = model, params, length
        self.compiled: dict[Setting, Any] = {}

    def prepare(self, setting: Setting) -> tuple[float, int | None]:
        """Compiles the program. Returns the seconds of compilation, and the bytes that the program needs."""
        compute = compute_of(setting, self.model.compute.dtype, self.model.compute.param_dtype)
        model = self.model.clone(compute=compute)
        start = time.perf_counter()
        read = jax.jit(lambda params, tokens_BT: model.apply({"params": params}, tokens_BT))
        compiled = self.compiled[setting] = read.lower(self.params, self.tokens(setting.batch)).compile()
        return time.perf_counter() - start, memory_of(compiled)

    def read(self, setting: Setting) -> Any:
        """The model's output."""
        return self.compiled[setting](self.params, self.tokens(setting.batch))

    def run(self, setting: Setting, times: int) -> float:
        """Runs the program this number of times. Returns the seconds."""
        tokens_BT = jax.device_put(self.tokens(setting.batch))
        start = time.perf_counter()
        for _ in range(times):
            output = self.compiled[setting](self.params, tokens_BT)
        jax.block_until_ready(output)
        return time.perf_counter() - start

    def tokens(self, batch: int) -> np.ndarray:
        """int32[B, T], the same ones at each call."""
        return np.random.default_rng(0).integers(0, self.model.config.vocab_size, (batch, self.length), np.int32)


class Decode:
    """Greedy decoding with a cache, as by `generate` on an accelerator. No token ends a row."""

    def __init__(self, model: Any, params: Any, prompt: int, new: int) -> None:
        self.model, self.params, self.prompt, self.new = model, params, prompt, new
        self.compiled: dict[Setting, Any] = {}

    def prepare(self, setting: Setting) -> tuple[float, int | None]:
        """Compiles the program. Returns the seconds of compilation, and the bytes that the program needs."""
        compute = compute_of(setting, self.model.compute.dtype, self.model.compute.param_dtype)
        tokens_BT = np.zeros((setting.batch, self.prompt), np.int32)
        start = time.perf_counter()
        lowered = generate.lower(
            self.model.clone(compute=compute), self._params(setting.apart), tokens_BT, tokens_BT == 0,
            max_new_tokens=self.new, sampling=zoo.Greedy(),
        )  # fmt: skip
        compiled = self.compiled[setting] = lowered.compile()
        return time.perf_counter() - start, memory_of(compiled)

    def run(self, setting: Setting, times: int) -> float:
        """Runs the program this number of times. Returns the seconds."""
        params, rng = self._params(setting.apart), np.random.default_rng(0)
        tokens_BT = rng.integers(0, self.model.config.vocab_size, (setting.batch, self.prompt), np.int32)
        prompts = jax.device_put((tokens_BT, np.ones(tokens_BT.shape, bool), jax.random.key(0)))
        start = time.perf_counter()
        for _ in range(times):
            new_BNR = self.compiled[setting](params, *prompts, np.int32(self.new), np.zeros(0, np.int32))
        jax.block_until_ready(new_BNR)
        return time.perf_counter() - start

    def _params(self, apart: bool) -> Any:
        """The parameters, stacked or by layer. Only one of the two forms is kept."""
        stacked = {name for name in self.params if re.fullmatch(STACKED, f"{name}/")}
        if apart != any(isinstance(self.params[name], Layers) for name in stacked):
            change = Layers.of if apart else lambda layers: jax.tree.map(lambda *xs: jnp.stack(xs), *layers)
            self.params |= {name: change(self.params[name]) for name in stacked}
        return self.params


def without_dropout(config: Any) -> Any:
    """The architecture with every rate of dropout at 0."""
    rates = [field.name for field in dataclasses.fields(config) if field.name.endswith("dropout")]
    return dataclasses.replace(config, **dict.fromkeys(rates, 0.0))


def published(model: Any) -> dict[str, Any]:
    """A model's config.json."""
    return config_map.write(registry.module_of(model.config), model.config, model.task, model.compute.param_dtype)


def compute_of(setting: Setting, dtype: str, param_dtype: str = "float32") -> zoo.Compute:
    names = ("attention", "remat", "unroll")
    return zoo.Compute(dtype=dtype, param_dtype=param_dtype, **{name: getattr(setting, name) for name in names})


def memory_of(compiled: Any) -> int | None:
    """Bytes that a program needs on a device: arguments, results and temporaries. None: not reported."""
    if (memory := compiled.memory_analysis()) is None:
        return None
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + output


# ---- answers to `accelerator.py` ----------------------------------------------------------------------------------

TINY = {
    "vocab_size": 160, "max_length": 64, "width": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
    "head_dim": 16, "mlp_dim": 64, "window": 8, "global_every": 2, "pad_id": 0, "eos_id": 1,
}  # fmt: skip


def config_of(case: Case) -> Any:
    """The architecture of a case's preset, or a tiny one of the family."""
    presets = zoo.presets()
    if case.model not in presets:
        raise ValueError(f"there is no preset {case.model!r}: choose one of {', '.join(presets)}")
    config = presets[case.model].config
    fields = {field.name for field in dataclasses.fields(config)} if case.tiny else ()
    return dataclasses.replace(config, **{name: size for name, size in TINY.items() if name in fields})


class Worker:
    """Answers the questions of `accelerator.py`, one case at a time."""

    def __init__(self) -> None:
        self.program: Any = None

    def device(self, small: bool) -> dict[str, Any]:
        """The device, and its rates of the two operations that limit a program."""
        first, times = jax.devices()[0], 8 if small else 100
        return {
            "platform": first.platform,
            "kind": first.device_kind,
            "jax": jax.__version__,
            "product": product_rate(256 if small else 8192, "bfloat16", times)(),
            "copy": copy_rate(2**22 if small else 2**30, times)(),
        }

    def begin(self, case: Case) -> dict[str, Any]:
        """Makes the model. Returns the FLOPs or bytes that a row of the case needs."""
        make = {"train": self._train, "encode": self._encode, "decode": self._decode}[case.kind]
        self.program = None  # frees its memory before the next one is made
        self.program, work = make(case)
        return work

    def prepare(self, setting: Setting) -> dict[str, Any]:
        compiling, memory = self.program.prepare(setting)
        return {"compiling": compiling, "memory": memory}

    def time(self, setting: Setting, seconds: float) -> dict[str, Any]:
        return {"seconds": peers.timed(functools.partial(self.program.run, setting), seconds)}

    def compare(self, case: Case) -> dict[str, Any]:
        """The differences of attention's fused kernel from the plain one: see `compare_attention`."""
        name = kernels.FUSED.get(jax.default_backend(), "xla")
        found = compare_attention(name, case.length)
        failed = [f"{row['mask']}: {row['error']}" for row in found if "error" in row]
        answer = {"implementation": name, "differences": found}
        return answer | ({"error": f"{name}, {'; '.join(failed)}"} if failed else {})

    def _train(self, case: Case) -> tuple[Train, dict[str, Any]]:
        program = Train(config_of(case), length=case.length, target=case.target, masked=case.masked, dtype="bfloat16")
        return program, {
            "tokens": case.length + case.target,
            "flops": program.flops(),
            "dense_flops": program.flops(masked=False),
            "config": program.published(),
        }

    def _encode(self, case: Case) -> tuple[Encode, dict[str, Any]]:
        m = self._fresh(case, "base")
        flops = forward_flops(m.model, case.length, predicted=0)
        return Encode(m.model, m.params, case.length), {
            "tokens": case.length, "flops": flops, "dense_flops": flops, "config": published(m.model),
        }  # fmt: skip

    def _decode(self, case: Case) -> tuple[Decode, dict[str, Any]]:
        m = self._fresh(case, "causal-lm")
        model = m.model.clone(config=dataclasses.replace(m.config, eos_id=None))
        held = case.length + case.new / 2
        return Decode(model, m.params, case.length, case.new), {
            "tokens": case.new,
            "bytes": {str(s.batch): case.new * step_bytes(model, s.batch, held) for s in (*case.ours, *case.theirs)},
            "config": published(m.model),
        }

    def _fresh(self, case: Case, task: str) -> Any:
        config = without_dropout(config_of(case))
        dtypes = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
        return zoo.from_config(registry.family_of(config), config, task=task, **dtypes)


def compare_attention(implementation: str, T: int) -> list[dict[str, Any]]:
    """For each kind of mask the largest difference of the implementation in bfloat16 from plain attention in float32,
    relative to its largest number; and, as a yardstick, that of plain attention in bfloat16."""
    shape = (4, T, 8, 64)
    inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4)]
    float32_inputs = [x.astype(jnp.float32) for x in inputs]
    found = []
    for name, mask in attention_masks(T).items():
        row: dict[str, Any] = {"mask": name}
        try:
            with jax.default_matmul_precision("highest"):
                truth = attention_results("xla", mask, *float32_inputs)
            plain = attention_results("xla", mask, *inputs)
            fused = plain if implementation == "xla" else attention_results(implementation, mask, *inputs)
            row |= differences(fused, truth) | {f"plain_{key}": x for key, x in differences(plain, truth).items()}
            if not np.isfinite(list(row.values())[1:]).all():
                row["error"] = "not finite"
        except Exception as error:
            traceback.print_exc()
            row["error"] = peers.reason(error)
        found.append(row)
    return found


def differences(results: list[np.ndarray], truth: list[np.ndarray]) -> dict[str, float]:
    """The largest differences of the output, and of the gradients."""
    forward, *gradients = (float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(results, truth))
    return {"forward": forward, "gradients": float(np.max(gradients))}


def attention_masks(T: int) -> dict[str, Mask]:
    """The masks that models use, for four rows."""
    ends = jnp.array([[T], [T // 2], [T - 3], [T // 3]])
    right, left = jnp.arange(T) < ends, jnp.arange(T) >= T - ends
    documents_BT = 1 + jnp.arange(T) // (T // jnp.array([[1], [2], [3], [5]]))
    packed = {"documents_BT": documents_BT, "documents_BS": documents_BT}
    return {
        "all": Mask(),
        "causal": Mask(causal=True),
        "padded on the right": Mask(valid_BS=right),
        "padded on the left": Mask(valid_BS=left),
        "causal, padded on the right": Mask(causal=True, valid_BS=right),
        "causal, padded on the left": Mask(causal=True, valid_BS=left),
        "window": Mask(window=T // 8, valid_BS=right),
        "packed documents": Mask(causal=True, **packed),
        "packed documents, window": Mask(window=T // 8, **packed),
    }


def attention_results(
    implementation: str, mask: Mask, q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, towards_BTHK: jax.Array
) -> list[np.ndarray]:
    """The output of attention and its gradients in a direction, for the queries that see a key."""
    T, K = q_BTHK.shape[1], q_BTHK.shape[3]

    def function(q_BTHK, k_BTHK, v_BTHK):
        y_BTHK = kernels.attend(q_BTHK, k_BTHK, v_BTHK, mask=mask, scale=K**-0.5, implementation=implementation)
        if (dense := mask.dense(T, T)) is not None:
            y_BTHK = jnp.where(dense.any(-1)[:, 0, :, None, None], y_BTHK, 0)
        return (y_BTHK.astype(jnp.float32) * towards_BTHK).sum(), y_BTHK

    gradients, y_BTHK = jax.jit(jax.grad(function, (0, 1, 2), has_aux=True))(q_BTHK, k_BTHK, v_BTHK)
    return [np.asarray(x, np.float32) for x in (y_BTHK, *gradients)]
