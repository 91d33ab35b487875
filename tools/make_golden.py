"""Writes tests/goldens/*.npz: the reference implementation's results, for the tests that run without it.

    python tools/make_golden.py [FAMILY ...]   (needs the extra `parity`; files are reproducible)

A file holds one small configuration of a family for a task; its random weights, stored in float16; three rows of
tokens, one of them padded on the right and one on the left; and in float64 the reference's outputs, all hidden states
and the gradients of all weights; of a decoder that answers questions, only the last hidden states and the head's
weights and gradients. Results at padding are zero. For an encoder-decoder there are rows of sources and of targets.
`dropout` lists the dropouts of a training forward pass.

The configuration is drawn at random. A family's main task has two files: the one without the suffix `-drawn` has the
published settings, for faults that a drawn configuration may hide.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import families  # noqa: E402
from parity import reference  # noqa: E402

from transformer_zoo import registry  # noqa: E402
from transformer_zoo.checkpoints import config_map  # noqa: E402

SIZES = {"vocab_size": 19, "max_length": 9, "width": 4, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
         "num_decoder_heads": 2, "head_dim": 2, "mlp_dim": 6, "mlp_decoder_dim": 5, "num_segments": 2,
         "num_delta_key_heads": 1, "num_delta_value_heads": 2}  # fmt: skip
# One head of 4 distinguishes 1/sqrt(K) from 1/K and halves from pairs (other files have several heads); the epsilon is
# far from Flax's 1e-6 and changes every digit.
CHOSEN = SIZES | {"num_heads": 1, "num_decoder_heads": 1, "num_kv_heads": 1, "local_kv_heads": 1, "head_dim": 4,
                  "embed_width": 6, "norm_epsilon": 5e-3}  # fmt: skip


def configs(family: str) -> Iterator[tuple[str, str, Any]]:
    """(name of the file, task, configuration) of each of a family's files."""
    rope = getattr(registry.family(family).Config(), "rope", None)
    wider = {"width": 8} if rope is not None and rope.share < 1 else {}  # a part of a head has several pairs too
    if hasattr(registry.family(family).Config, "num_reusing_layers"):  # layers of both kinds, of which others follow
        # The reference counts their dropouts only with vectors of each layer.
        wider |= {"num_layers": 4, "num_reusing_layers": 2, "global_every": 2, "input_dim": 8}
    small = families.small(family)
    experts = families.EXPERTS if getattr(small, "num_experts", 0) is None else {}
    for task in families.tasks(family):
        drawn = families.random_config(family, 6, task)
        few = {"num_kv_heads", "local_kv_heads"}.intersection(vars(drawn))  # these divide the heads
        few = {name: min(getattr(drawn, name), SIZES["num_heads"]) for name in few}
        drawn = families.sized(drawn, **SIZES | few | wider)
        rates = families.dropouts(families.small(family))
        drawn = dataclasses.replace(drawn, **rates)  # only for `dropout`
        if task == families.main_task(family):
            yield f"{family}-{task}", task, families.sized(small, **CHOSEN | wider | experts)
            yield f"{family}-{task}-drawn", task, drawn
        else:
            yield f"{family}-{task}", task, drawn


def golden(family: str, task: str, config: Any) -> dict[str, np.ndarray]:
    """The arrays of a file."""
    case = families.Case(family=family, task=task, config=config)
    model = reference.build(case, seed=6)
    inputs = families.rows(case, 3, 6)
    valid = lambda T: np.stack([np.ones(T, bool), np.arange(T) < T - 2, np.arange(T) >= 3])
    inputs = families.padded(case, inputs, {ids: valid(inputs[ids].shape[1]) for ids in case.ids if ids in inputs})
    offset = getattr(case.config, "first_position", 0)
    outputs, hidden, grads = reference.evaluate(task, model, inputs, offset)
    weights = reference.tensors(model)
    if families.is_head_alone(case):  # over hidden states that the file of the body compares
        head = {theirs for theirs, *_ in case.module.PUBLISHED.heads[task]}
        hidden = {ids: x[-1:] for ids, x in hidden.items()}
    else:
        head = grads.keys()
    return {
        "config": np.array(json.dumps(config_map.write(case.module, case.config, task), sort_keys=True)),
        "shapes": np.array(json.dumps({name: grad.shape for name, grad in grads.items()})),
        "dropout": np.array(json.dumps(reference.dropouts(task, model, inputs))),
        **inputs,
        **{
            f"output {name}": families.zero_padding(task, name, x, families.mask_of(inputs))
            for name, x in outputs.items()
        },
        **{name_of(ids): x * families.mask_of(inputs, ids)[..., None] for ids, x in hidden.items()},
        # All of them in one array each: a smaller file than with many arrays.
        "weights": np.concatenate([weights[name].astype(np.float16).ravel() for name in grads if name in head]),
        "gradients": np.concatenate([grad.ravel() for name, grad in grads.items() if name in head]),
    }


def name_of(ids: str) -> str:
    """The name of the hidden states of these ids."""
    return "hidden" if ids == "tokens_BT" else f"hidden {ids}"


if __name__ == "__main__":
    for family in sys.argv[1:] or registry.families():
        for name, task, config in configs(family):
            path = ROOT / "tests" / "goldens" / f"{name}.npz"
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(path, **golden(family, task, config))
            print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1024:.1f} KiB")
