"""Every kind of rotary positions against the reference's angles, for texts within and beyond the original length."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402

from parity import reference  # noqa: E402
from transformer_zoo.models import llama  # noqa: E402
from transformer_zoo.nn.rotary import Rope  # noqa: E402

LONGEST, HEAD = 32, 12
FACTORS = {"short_factors": (1.0, 1.1, 1.5, 2.0, 3.0, 4.0), "long_factors": (1.0, 2.0, 4.0, 5.0, 9.0, 20.0)}
ROPES = {
    "default": Rope(theta=500.0),
    "linear": Rope(kind="linear", factor=2.5),
    "dynamic": Rope(kind="dynamic", factor=4.0),
    "llama3": Rope(kind="llama3", factor=8.0, original_length=16, slow_turns=0.3, fast_turns=2.0, theta=100.0),
    "yarn": Rope(kind="yarn", factor=2.0, original_length=16, slow_turns=0.2, fast_turns=3.0, theta=100.0),
    "yarn, parts of pairs": Rope(
        kind="yarn", factor=4.0, original_length=8, slow_turns=0.1, fast_turns=2.0, whole_pairs=False, theta=50.0
    ),
    "yarn, a given factor": Rope(kind="yarn", factor=2.0, original_length=16, fast_turns=32.0, attention_factor=0.8),
    "longrope": Rope(kind="longrope", factor=2.0, original_length=16, **FACTORS),
    "longrope, a given factor": Rope(kind="longrope", original_length=16, attention_factor=1.3, **FACTORS),
}


@pytest.fixture
def wide_torch():
    """Numbers that torch makes of whole ones are in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# The reference's LLaMA rotates whole heads if the kind is the default one.
@pytest.mark.parametrize(("name", "share"), [("default", 1.0), *itertools.product([*ROPES][1:], [1.0, 0.5])])
@pytest.mark.usefixtures("wide_torch")
def test_angles_are_those_of_the_reference(name: str, share: float):
    pairs = int(HEAD * share) // 2
    cut = {key: value[:pairs] for key, value in FACTORS.items()} if ROPES[name].kind == "longrope" else {}
    rope = dataclasses.replace(ROPES[name], share=share, **cut)
    config = llama.Config(width=48, num_heads=4, num_kv_heads=4, head_dim=HEAD, max_length=LONGEST, rope=rope)
    keys = llama.PUBLISHED.config
    settings = {
        "hidden_size": 48, "num_attention_heads": 4, "head_dim": HEAD,
        "max_position_embeddings": keys["max_length"].write(config.max_length, config),
        "rope_parameters": keys["rope"].write(rope, config),
    }  # fmt: skip
    for length in (8, 16, 17, LONGEST):
        # A fresh one for each length: it remembers the longest text.
        with reference.in_double():
            theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**settings))
            cos, sin = theirs(torch.zeros(1), torch.arange(length)[None])
        with jax.enable_x64(True):
            ours = rope.rotation(jnp.arange(length)[None], HEAD, config.max_length, jnp.float64)
        for own, other in zip((ours.cos_BTP, ours.sin_BTP), (cos, sin)):
            np.testing.assert_allclose(np.concatenate([own, own], axis=-1), other.numpy(), rtol=0, atol=1e-12)
