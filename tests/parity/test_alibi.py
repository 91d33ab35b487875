"""ALiBi's slopes beside those of the reference implementation, for every number of heads."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")

from parity import reference  # noqa: E402
from transformer_zoo.nn import alibi  # noqa: E402


def test_slopes():
    with reference.in_double():
        for heads in range(1, 130):
            theirs = bloom._get_alibi_slopes(heads, torch.device("cpu")).numpy()
            np.testing.assert_allclose(alibi.slopes(heads), theirs, rtol=1e-13)
