"""Similarity and quantization of vectors: small values by hand, and refusals."""

import warnings

import numpy as np
import pytest

from transformer_zoo.vectors import PRECISIONS, quantize_embeddings, similarity

A = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
B = np.array([[4.0, 3.0], [-3.0, -4.0], [6.0, 8.0]], np.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", [[0.96, -1, 1], [0, 0, 0]]),
        ("dot", [[24, -25, 50], [0, 0, 0]]),
        ("euclidean", [[-(2**0.5), -10, -5], [-5, -5, -10]]),
        ("manhattan", [[-2, -14, -7], [-7, -7, -14]]),
    ],
)
def test_similarity(name: str, expected: list[list[float]]):
    found = similarity(A, B, name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(similarity(A[0], B.tolist(), name), expected[:1], rtol=1e-6)
    assert similarity(A[:0], B, name).shape == (0, 3)


def test_what_is_not_compared():
    with pytest.raises(ValueError, match="no similarity 'l2': choose among cosine, dot, euclidean, manhattan"):
        similarity(A, B, "l2")
    for wrong in ("a", None, [["a"]], [[1.0], [2.0, 3.0]]):
        with pytest.raises(ValueError, match="others_MD must be an array of numbers"):
            similarity(A, wrong)
    with pytest.raises(ValueError, match=r"have the shapes \(2, 2\) and \(2, 3\)"):
        similarity(A, B.T)


VECTORS = np.array([[-127.5, 0.5, 0.0], [127.5, 0.5, 12.75], [0.0, 0.5, -9.0]], np.float32)
RANGES = np.array([[-127.5, 0.5, 0.0], [127.5, 0.5, 127.5]], np.float32)


def test_steps_of_a_range():
    """256 steps from the least to the greatest value, or its ends outside of it; a constant number is at the least."""
    expected = np.array([[0, 0, 0], [255, 0, 25], [127, 0, 0]])
    for options in ({"ranges": RANGES}, {"calibration_embeddings": np.concatenate([RANGES, RANGES[:1]])}):
        unsigned = quantize_embeddings(VECTORS, "uint8", **options)
        assert unsigned.dtype == np.uint8
        np.testing.assert_array_equal(unsigned, expected)
        signed = quantize_embeddings(VECTORS, "int8", **options)
        assert signed.dtype == np.int8
        np.testing.assert_array_equal(signed, expected - 128)


def test_ranges_of_few_vectors_are_warned_of():
    with pytest.warns(UserWarning, match="the ranges of int8 are those of just 3 vectors"):
        found = quantize_embeddings(VECTORS, "int8")
    np.testing.assert_array_equal(found, quantize_embeddings(VECTORS, "int8", calibration_embeddings=VECTORS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_embeddings(np.tile(VECTORS, (40, 1)), "int8")


def test_signs():
    """Eight to a byte, the first highest; zero is no positive number."""
    signs = np.array([[1, -1, 1, 0, -1, 1, 1, 1, 1, -1], [-1] * 10], np.float32)
    np.testing.assert_array_equal(quantize_embeddings(signs, "ubinary"), [[0b10100111, 0b10000000], [0, 0]])
    np.testing.assert_array_equal(quantize_embeddings(signs, "binary"), [[0b10100111 - 128, 0], [-128, -128]])
    assert [quantize_embeddings(signs, name).dtype for name in ("ubinary", "binary")] == [np.uint8, np.int8]


def test_floats_and_nothing():
    np.testing.assert_array_equal(quantize_embeddings(VECTORS, "float16"), VECTORS.astype(np.float16))
    for name in PRECISIONS:
        found = quantize_embeddings(VECTORS[:0], name)
        assert (
            found.shape == (0, 1 if "binary" in name else 3)
            and found.dtype
            == quantize_embeddings(VECTORS, name, **({"ranges": RANGES} if name in ("int8", "uint8") else {})).dtype
        )


@pytest.mark.parametrize(
    ("vectors", "precision", "options", "message"),
    [
        (VECTORS, "int4", {}, "there is no precision 'int4': choose among float32, float16, int8"),
        (VECTORS.astype(np.int8), "int8", {}, r"floats \[N, D\] are quantized: these are int8\[3, 3\]"),
        (VECTORS[0], "int8", {}, r"floats \[N, D\] are quantized: these are float32\[3\]"),
        (VECTORS, "binary", {"ranges": RANGES}, "precision='binary' needs no ranges: they are for int8 and uint8"),
        (VECTORS[:1], "int8", {}, "a single vector has no ranges: give ranges or calibration_embeddings"),
        (VECTORS, "int8", {"ranges": RANGES[:, :2]}, r"ranges must be \[2, 3\]: these are \[2, 2\]"),
        (VECTORS, "int8", {"ranges": RANGES[::-1]}, "some least one is greater"),
        (VECTORS, "int8", {"ranges": RANGES, "calibration_embeddings": VECTORS}, "give one of them"),
        (VECTORS, "int8", {"calibration_embeddings": VECTORS[:0]}, r"\[M, 3\], M above 0: these are \[0, 3\]"),
    ],
)
def test_what_is_not_quantized(vectors: np.ndarray, precision: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        quantize_embeddings(vectors, precision, **options)
