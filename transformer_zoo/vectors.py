"""Vectors of texts: how similar they are, and with fewer bits a number."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from transformer_zoo import arguments

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
CALIBRATED = ("int8", "uint8")
FEW = 100  # fewer vectors than this give poor ranges


def similarity(vectors_ND: Any, others_MD: Any, name: str = "cosine") -> np.ndarray:
    """The similarity of each vector to each of the others, float32[N, M]. The larger, the more similar.

    Args:
        vectors_ND, others_MD: [N, D] and [M, D], or single vectors [D]; not binary ones, whose numbers are packed bits.
        name: `cosine`; `dot`, the inner product; or `euclidean` or `manhattan`, the negated distance.

    Raises:
        ValueError: an unknown name, or vectors of unequal sizes.
    """
    if name not in SIMILARITIES:
        raise ValueError(f"there is no similarity {name!r}: choose among {', '.join(SIMILARITIES)}")
    a_ND, b_MD = (np.atleast_2d(_numbers(x, of)) for x, of in ((vectors_ND, "vectors_ND"), (others_MD, "others_MD")))
    if a_ND.ndim != 2 or b_MD.ndim != 2 or a_ND.shape[1] != b_MD.shape[1]:
        raise ValueError(f"vectors [N, D] and [M, D] are compared: these have the shapes {a_ND.shape} and {b_MD.shape}")
    match name:
        case "cosine":
            return normalize(a_ND) @ normalize(b_MD).T
        case "dot":
            return a_ND @ b_MD.T
        case "euclidean":
            distances = [np.sqrt(((a_D - b_MD) ** 2).sum(axis=1)) for a_D in a_ND]
        case "manhattan":
            distances = [np.abs(a_D - b_MD).sum(axis=1) for a_D in a_ND]
    return -np.array(distances, np.float32).reshape(len(a_ND), len(b_MD))


def normalize(vectors_ND: np.ndarray) -> np.ndarray:
    """The vectors, each divided by its length; zero stays zero."""
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=-1, keepdims=True), 1e-12)


def quantize_embeddings(
    vectors_ND: Any, precision: str, *, ranges: Any = None, calibration_embeddings: Any = None
) -> np.ndarray:
    """The same vectors with fewer bits a number.

    Args:
        vectors_ND: floats [N, D].
        precision: `float32` or `float16`; `int8` or `uint8`: the range of each of the D numbers in 256 equal steps, and
            what lies outside goes to its end; `binary` or `ubinary`: the sign bits (1 above zero), eight to an int8 (of
            128 less) or uint8, the first one highest: [N, ceil(D / 8)].
        ranges: for int8 and uint8, [2, D]: the least and the greatest value of each number. Vectors can be compared
            only if they were quantized with the same ranges.
        calibration_embeddings: instead of `ranges`, typical vectors [M, D] to take them from. None: from `vectors_ND`,
            with a warning if these are fewer than 100, and at least 2.

    Raises:
        ValueError: an unknown precision, vectors that are no floats, or ranges that are not wanted or do not fit.
        TypeError: a precision of another type.
    """
    arguments.check(quantize_embeddings, locals())
    vectors_ND = np.asarray(vectors_ND)
    if precision not in PRECISIONS:
        raise ValueError(f"there is no precision {precision!r}: choose among {', '.join(PRECISIONS)}")
    if vectors_ND.ndim != 2 or not np.issubdtype(vectors_ND.dtype, np.floating):
        raise ValueError(f"floats [N, D] are quantized: these are {vectors_ND.dtype}{list(vectors_ND.shape)}")
    if precision not in CALIBRATED and not (ranges is None and calibration_embeddings is None):
        raise ValueError(f"precision={precision!r} needs no ranges: they are for {' and '.join(CALIBRATED)}")
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors_ND > 0, axis=-1)
        return bits if precision == "ubinary" else (bits ^ 0x80).view(np.int8)  # in two's complement, 128 less
    if precision not in CALIBRATED:
        return vectors_ND.astype(precision, copy=False)

    low_D, high_D = _ranges(vectors_ND, precision, ranges, calibration_embeddings)
    steps_D = (high_D - low_D) / 255
    steps_D = np.where(steps_D == 0, np.float32(1), steps_D)
    levels_ND = np.clip(np.floor((vectors_ND - low_D) / steps_D), 0, 255)
    return (levels_ND - (128 if precision == "int8" else 0)).astype(precision)


def _numbers(x: Any, name: str) -> np.ndarray:
    """What a caller gives, as float32."""
    try:
        found = np.asarray(x, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from None
    if x is None:  # numpy takes it for a number
        raise ValueError(f"{name} must be an array of numbers, not None")
    return found


def read_ranges(file: Path) -> np.ndarray:
    """The array in a file of numpy's.

    Raises:
        ValueError: it holds none.
    """
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} holds no numpy array: {error}") from None


def _ranges(vectors_ND: np.ndarray, precision: str, ranges: Any, calibration_embeddings: Any) -> np.ndarray:
    """[2, D], float32."""
    size = vectors_ND.shape[1]
    if ranges is not None and calibration_embeddings is not None:
        raise ValueError("ranges and calibration_embeddings: give one of them")
    if ranges is not None:
        ranges = _numbers(ranges, "ranges")
        if ranges.shape != (2, size):
            raise ValueError(f"ranges must be [2, {size}]: these are {list(ranges.shape)}")
        if not (ranges[0] <= ranges[1]).all():
            raise ValueError("ranges are the least and the greatest value of each number: some least one is greater")
        return ranges
    source_MD = vectors_ND if calibration_embeddings is None else np.asarray(calibration_embeddings)
    if source_MD.ndim != 2 or source_MD.shape[1] != size or not len(source_MD) and calibration_embeddings is not None:
        raise ValueError(f"calibration_embeddings must be [M, {size}], M above 0: these are {list(source_MD.shape)}")
    if not len(source_MD):
        return np.zeros((2, size), np.float32)
    if calibration_embeddings is None and len(source_MD) == 1:
        raise ValueError("a single vector has no ranges: give ranges or calibration_embeddings")
    if calibration_embeddings is None and len(source_MD) < FEW:
        warnings.warn(
            f"the ranges of {precision} are those of just {len(source_MD)} vectors: vectors of two calls can only be "
            "compared if both are given the same ranges",
            stacklevel=3,
        )
    return np.stack([source_MD.min(axis=0), source_MD.max(axis=0)]).astype(np.float32)
