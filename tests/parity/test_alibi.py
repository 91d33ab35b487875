"""ALiBi's slopes beside those of the reference implementation, for every number of heads."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
falcon = pytest.importorskip("transformers.models.falcon.modeling_falcon")

from parity import reference  # noqa: E402
from transformer_zoo.nn import alibi  # noqa: E402


def test_slopes():
    with reference.in_double():
        for heads in range(1, 130):
            theirs = bloom._get_alibi_slopes(heads, torch.device("cpu")).numpy()
            np.testing.assert_allclose(alibi.slopes(heads), theirs, rtol=1e-13)


def test_biases_in_bfloat16():
    """Falcon's, for every position of its longest text."""
    mask = torch.ones(1, 2048, dtype=torch.long)
    for heads in (5, 32, 71):
        theirs = falcon.build_alibi_tensor(mask, heads, torch.float32).numpy()
        ours = alibi.narrow_bias(np.arange(2048)[None], heads, np.float32)
        np.testing.assert_array_equal(ours[0], theirs)
