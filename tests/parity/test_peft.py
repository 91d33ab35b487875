"""Adapters, live: PEFT's folders are read, and ours are read by PEFT, with the same logits in float64."""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import families
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformer_zoo as zoo  # noqa: E402
from parity import assets, reference  # noqa: E402
from transformer_zoo import lora, trees  # noqa: E402
from transformer_zoo.checkpoints import peft as layout  # noqa: E402
from transformer_zoo.config import Lora  # noqa: E402

EXACT = 1e-9
TASKS = {name: key for key, name in layout.TASKS.items()}
CASES = [
    # GPT-2's queries, keys and values are one matrix, [inputs, outputs]; a head that is trained whole.
    ("gpt2", "sequence-classification", ["c_attn", "mlp.c_fc"], r".*/(query|key|value|mlp_up)",
     {"use_dora": True, "fan_in_fan_out": True}),
    (
        "llama", "causal-lm", "all-linear", r".*blocks/.*",
        {"use_rslora": True, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"q_proj": 7, r"layers\.1\.mlp.up.*": 2}},
    ),
    # Parts of several sizes in one matrix: one after another, and by groups.
    ("phi3", "causal-lm", ["qkv_proj", "gate_up_proj"], r".*/(query|key|value|mlp_gate|mlp_up)", {"use_dora": True}),
    ("falcon", "causal-lm", ["query_key_value"], r".*/(query|key|value)", {}),
    # Names that their ends do not tell apart.
    ("t5", "seq2seq-lm", ["q", "v"], r"encoder_blocks/.*/query", {"use_dora": True}),
    ("bert", "sequence-classification", ["query", "value"], r".*/(query|value)", {"bias": "lora_only"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def peft() -> Iterator[ModuleType]:
    """The library, from its wheel: it is no requirement of the comparison, as another one that it needs is not."""
    folders = [str(assets.unpacked(name)) for name in ("accelerate", "peft")]
    sys.path[:0] = folders
    import peft

    yield peft
    sys.path[:] = [path for path in sys.path if path not in folders]


def logits_of(theirs: Any, tokens_BT: np.ndarray) -> np.ndarray:
    ids = torch.tensor(tokens_BT.astype(np.int64))
    given = {"decoder_input_ids": ids} if theirs.config.is_encoder_decoder else {}
    with torch.no_grad(), reference.in_double():
        return theirs(input_ids=ids, **given).logits.numpy()


def largest(found: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@pytest.mark.filterwarnings("error:.*(missing|unexpected|fan_in_fan_out)")
@pytest.mark.parametrize(("family", "task", "theirs", "ours", "settings"), CASES, ids=[case[0] for case in CASES])
def test_adapters_are_exchanged(
    tmp_path: Path, peft: ModuleType, family: str, task: str, theirs: Any, ours: str, settings: dict[str, Any],
    record_property: Any,
) -> None:  # fmt: skip
    with jax.enable_x64(True):
        case = dataclasses.replace(families.main(family), task=task).wide()
        base, double = functools.partial(reference.build, case, 0), {"dtype": "float64", "param_dtype": "float64"}
        base().save_pretrained(tmp_path / "base")
        m, tokens_BT = zoo.from_pretrained(tmp_path / "base", **double), case.tokens(1, 9)
        inputs, params = [tokens_BT] * len(case.ids), m.params
        whole = tuple(path for path in trees.flatten(params) if path.startswith("head/") and "class" in task)

        made = peft.LoraConfig(r=3, lora_alpha=5, target_modules=theirs, task_type=TASKS[task], **settings)
        adapted = peft.get_peft_model(base(), made, autocast_adapter_dtype=False).double()
        for i, parameter in enumerate(x for x in adapted.parameters() if x.requires_grad):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            parameter.data += 0.2 * noise
        adapted.eval().save_pretrained(tmp_path / "theirs")
        read = zoo.from_pretrained(tmp_path / "base", adapter=tmp_path / "theirs", **double)
        apply = jax.jit(lambda params, model: model.apply({"params": params}, *inputs).logits, static_argnums=1)
        assert read.model.task == task and not read.fresh
        difference = largest(apply(read.params, read.model), logits_of(adapted, tokens_BT))
        record_property("adapters read", difference)
        assert difference < EXACT

        chosen = Lora(
            rank=3, alpha=5.0, targets=(ours,), whole=whole, dora=settings.get("use_dora", False),
            rank_stabilized=settings.get("use_rslora", False),
        )  # fmt: skip
        model = lora.adapted(m.model, chosen)
        trained, _ = model.divided(families.random_params(model, 3, 0.2))
        params = lora.joined(params, trained)
        adapter = lora.Adapter(model, trained, str(tmp_path / "base"))
        zoo.save_adapter(tmp_path / "ours", m.replace(params=model.merged(params), adapter=adapter))
        again = peft.PeftModel.from_pretrained(base(), tmp_path / "ours", autocast_adapter_dtype=False).double().eval()
        expected = logits_of(again, tokens_BT)
        difference = largest(apply(params, model), expected)
        record_property("adapters written", difference)
        assert difference < EXACT
        assert largest(apply(model.merged(params), m.model), expected) < EXACT
    targets = json.loads((tmp_path / "ours" / layout.CONFIG).read_text())["target_modules"]
    assert ("encoder.block.1.layer.0.SelfAttention.q" in targets) == (family == "t5")
