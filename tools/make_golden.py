"""Writes tests/goldens/*.npz: what the reference implementation says, for the tests that run without it.

    python tools/make_golden.py [FAMILY ...]   (needs the extra `parity`; every file is the same whenever it is made)

A file holds one small random configuration of a family for a task, its weights (numbers of half precision, to be
computed with in double), three rows of tokens, one of them padded on the right and one on the left, and in double
precision what the reference makes of them: what it says, all its hidden states, and the gradients of all weights.
Whatever stands at padding is zero. Of an encoder-decoder there are rows of sources and of targets.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import families  # noqa: E402
from parity import reference  # noqa: E402

from transformer_zoo import registry  # noqa: E402
from transformer_zoo.checkpoints import config_map  # noqa: E402

SIZES = {"vocab_size": 19, "max_length": 9, "width": 4, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
         "num_decoder_heads": 2, "head_dim": 2, "mlp_dim": 6, "mlp_decoder_dim": 5, "num_segments": 2}  # fmt: skip


def golden(family: str, task: str) -> dict[str, np.ndarray]:
    """The arrays of a file."""
    config = families.random_config(family, 6, task)
    fields = {field.name for field in dataclasses.fields(config)}
    config = dataclasses.replace(config, **{name: size for name, size in SIZES.items() if name in fields})
    case = families.Case(family=family, task=task, config=config)
    model = reference.build(case, seed=6)
    given = families.rows(case, 3, 6)
    valid = lambda T: np.stack([np.ones(T, bool), np.arange(T) < T - 2, np.arange(T) >= 3])
    given = families.padded(case, given, {ids: valid(given[ids].shape[1]) for ids in case.ids if ids in given})
    offset = getattr(case.config, "first_position", 0)
    words, hidden, grads = reference.told(task, model, given, offset)
    return {
        "config": np.array(json.dumps(config_map.write(case.module, case.config, task), sort_keys=True)),
        "shapes": np.array(json.dumps({name: grad.shape for name, grad in grads.items()})),
        **given,
        **{f"said {name}": families.real(task, name, x, families.mask_of(given)) for name, x in words.items()},
        **{name_of(ids): x * families.mask_of(given, ids)[..., None] for ids, x in hidden.items()},
        # One after the other in one array each, which is smaller than many arrays.
        "weights": np.concatenate([reference.tensors(model)[name].astype(np.float16).ravel() for name in grads]),
        "gradients": np.concatenate([grad.ravel() for grad in grads.values()]),
    }


def name_of(ids: str) -> str:
    """What the hidden states of these ids are called."""
    return "hidden" if ids == "tokens_BT" else f"hidden {ids}"


if __name__ == "__main__":
    for family in sys.argv[1:] or registry.families():
        for task in registry.family(family).PUBLISHED.tasks:
            path = ROOT / "tests" / "goldens" / f"{family}-{task}.npz"
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(path, **golden(family, task))
            print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1024:.1f} KiB")
