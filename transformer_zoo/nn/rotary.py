"""Rotary positions (Su et al. 2021): queries and keys turned by angles that grow with their position, and the ways to
read texts longer than those that a model was trained on."""

import dataclasses
import functools
import math
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import arguments
from transformer_zoo.nn.checks import check_range, choices_of


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Rope:
    """Which elements of a head are rotated, and how fast. Pair i turns by theta ** (-2i / K) per position.

    The kinds other than `default` slow the turning down, so that positions beyond the original length have angles that
    the model knows:

    - `linear`: all pairs, by `factor` (Chen et al. 2023).
    - `dynamic`: by a larger theta, for texts beyond the original length only, and the more the longer the text.
    - `llama3`: pairs of long wavelengths, by `factor` (Dubey et al. 2024, section 3.4.2).
    - `yarn`: likewise, with a ramp, and with larger queries and keys (Peng et al. 2023, section 3).
    - `longrope`: each pair by a factor of its own, of which a long text has others (Ding et al. 2024).
    - `proportional`: all pairs, by `factor`; of the pairs of the whole head, only the first ones, `share` of them, turn
      at all, as fast as if all did.

    Raises:
        ValueError: a number that cannot be, or a kind without what it needs.
        TypeError: a field of another type.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional"] = "default"
    share: float = 1.0
    """Of a head's elements, from the first on, those that are rotated."""
    interleaved: bool = False
    """Whether elements 2i and 2i + 1 are a pair, instead of element i and the one half of the rotated elements further
    on."""
    factor: float = 1.0
    original_length: int | None = None
    """The length of the texts that the model was first trained on: of llama3, yarn and longrope."""
    slow_turns: float = 1.0
    fast_turns: float = 4.0
    """Of llama3 and yarn: pairs that turn less often than `slow_turns` over the original length are slowed down, those
    that turn more often than `fast_turns` are not, and the others in part."""
    whole_pairs: bool = True
    """Of yarn: the ramp begins and ends at whole numbers of pairs."""
    attention_factor: float | None = None
    """Of yarn and longrope: what queries and keys are multiplied by. None: as the paper has it, by `factor`."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """Of yarn, with m(x) = 1 + 0.1 x log(factor): where both are there, queries and keys are multiplied by m(mscale) /
    m(mscale_all_dim) if there is no attention_factor; and by `score_scale`, m(mscale_all_dim) squared, the scores of
    models with latent attention (the code released with DeepSeek-V2)."""
    query_growth: float | None = None
    """Of yarn: queries at position p are also multiplied by 1 + query_growth * log(1 + floor(p / original_length)).
    None: they are not."""
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    """Of longrope: of each pair, for texts up to the original length and for longer ones."""

    def __post_init__(self) -> None:
        arguments.check(type(self), vars(self))
        if self.kind not in (known := choices_of(type(self))["kind"]):
            raise ValueError(f"kind is {self.kind!r}: choose one of {', '.join(known)}")
        check_range(self, "theta", "factor", "share", above=0)
        check_range(self, "mscale", "mscale_all_dim", least=0)
        if self.share > 1:
            raise ValueError(f"share is {self.share}: it is a part of a head, at most 1")
        if self.kind in ("llama3", "yarn", "longrope") and self.original_length is None:
            raise ValueError(f"rotary positions of the kind {self.kind} need original_length")
        if self.original_length is not None and self.original_length < 2:
            raise ValueError(f"original_length is {self.original_length}: it must be at least 2")
        if self.kind in ("llama3", "yarn") and not 0 < self.slow_turns < self.fast_turns:
            raise ValueError(f"slow_turns={self.slow_turns} must be below fast_turns={self.fast_turns}, and above 0")
        for name in ("query_growth", "mscale", "mscale_all_dim"):
            if self.kind != "yarn" and (value := getattr(self, name)) is not None:
                raise ValueError(f"{name}={value} goes with the kind yarn, not {self.kind}")
        if self.kind == "longrope" and (self.short_factors is None or self.long_factors is None):
            raise ValueError("rotary positions of the kind longrope need short_factors and long_factors")

    def __repr__(self) -> str:
        """Only the fields that are set, of which there are few."""
        fields = dataclasses.fields(self)
        own = {field.name: x for field in fields if (x := getattr(self, field.name)) != field.default}
        return f"Rope({', '.join(f'{name}={x!r}' for name, x in own.items())})"

    def check(self, head_dim: int, max_length: int) -> None:
        """Refuses heads and lengths that do not go with these settings.

        Raises:
            ValueError: no rotated elements or an odd number, factors for another number of pairs, or a length that
                `factor` does not divide.
        """
        pairs = self._pairs(head_dim)
        rotated = head_dim if self.kind == "proportional" else int(head_dim * self.share)
        if rotated % 2 or not rotated:
            part = f", of which the share {self.share:g} is {rotated} elements" if rotated != head_dim else " is odd"
            raise ValueError(f"head_dim={head_dim}{part}: rotary positions turn pairs of elements")
        if self.kind == "dynamic" and (pairs < 2 or max_length % self.factor):
            raise ValueError(
                f"dynamic rotary positions need heads of at least 4 rotated elements, not {2 * pairs}, "
                f"and a max_length that is a multiple of factor={self.factor:g}, not {max_length}"
            )
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            if self.kind == "longrope" and (len(factors) != pairs or min(factors) <= 0):
                raise ValueError(f"{name} are {factors}: there must be {pairs}, one for each pair of a head, above 0")

    def steady_length(self, max_length: int) -> int | None:
        """The longest text whose rotation does not depend on how long it is. None: that of no text does."""
        return {"dynamic": int(max_length / self.factor), "longrope": self.original_length}.get(self.kind)

    def rotation(self, positions_BT: jax.Array, head_dim: int, max_length: int, dtype: Any) -> "Rotation":
        """The rotation of each position, for `rotate`.

        Args:
            max_length: the longest text of the model; for `dynamic`, `factor` times the original length.
            dtype: at least float32, since angles are large, and their fractions matter.
        """
        pairs = self._pairs(head_dim)
        if self.kind in ("dynamic", "longrope"):
            length_BT = _lengths(positions_BT).astype(dtype)[..., None]
            if self.kind == "dynamic":
                longer = jnp.maximum(length_BT * self.factor / max_length, 1)  # than the original length
                theta = self.theta * (self.factor * longer - (self.factor - 1)) ** (pairs / (pairs - 1))
                speed = theta ** (-jnp.arange(pairs, dtype=dtype) / pairs)
            else:
                slowed = [self._speed(head_dim) / np.array(x) for x in (self.short_factors, self.long_factors)]
                speed = jnp.where(length_BT > self.original_length, *(jnp.asarray(x, dtype) for x in slowed[::-1]))
        else:
            speed = jnp.asarray(self._speed(head_dim), dtype)
        angles = positions_BT[..., None].astype(dtype) * speed
        growth = None
        if self.query_growth is not None:
            growth = 1 + self.query_growth * jnp.log1p((positions_BT // self.original_length).astype(dtype))
        return Rotation(
            jnp.cos(angles) * self.attention_scale, jnp.sin(angles) * self.attention_scale, growth, self.interleaved
        )

    def slowdown(self, head_dim: int) -> np.ndarray | None:
        """float64[pairs]: by how much each pair turns more slowly than by theta alone, where that is all that makes
        these positions. None: the length of the text, or another scale of queries and keys, makes them too."""
        if self.kind == "longrope" and self.attention_scale == 1 and self.short_factors == self.long_factors:
            return np.array(self.short_factors)
        if self.kind not in ("llama3", "proportional"):
            return None
        usual = dataclasses.replace(self, kind="default", share=1.0 if self.kind == "proportional" else self.share)
        with np.errstate(divide="ignore"):  # pairs that do not turn at all
            return usual._speed(head_dim) / self._speed(head_dim)

    def _pairs(self, head_dim: int) -> int:
        return head_dim // 2 if self.kind == "proportional" else int(head_dim * self.share) // 2

    def _speed(self, head_dim: int) -> np.ndarray:
        """float64[pairs]: the angle of each pair per position, whatever the length of the text."""
        if self.kind == "proportional":
            speed = np.float64(self.theta) ** (-np.arange(0, head_dim, 2) / head_dim) / self.factor
            return np.where(np.arange(len(speed)) < int(head_dim * self.share / 2), speed, 0)
        rotated = int(head_dim * self.share)
        speed = np.float64(self.theta) ** (-np.arange(0, rotated, 2) / rotated)
        if self.kind == "linear":
            return speed / self.factor
        if self.kind == "llama3":
            turns = self.original_length * speed / (2 * math.pi)
            kept = (turns - self.slow_turns) / (self.fast_turns - self.slow_turns)
        elif self.kind == "yarn":
            # The pair, as a real number, that turns so often over the original length.
            at = lambda turns: (
                rotated * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.theta))
            )
            first, last = at(self.fast_turns), at(self.slow_turns)
            if self.whole_pairs:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, rotated - 1)
            kept = 1 - (np.arange(len(speed)) - first) / (last - first if last != first else 0.001)
        else:
            return speed
        kept = np.clip(kept, 0, 1)
        return kept * speed + (1 - kept) * speed / self.factor

    @property
    def attention_scale(self) -> float:
        """What queries and keys are multiplied by."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "yarn":
            both = self.mscale and self.mscale_all_dim
            of = functools.partial(yarn_magnitude, self.factor)
            return of(self.mscale) / of(self.mscale_all_dim) if both else of(1)
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length)) if self.factor > 1 else 1.0

    @property
    def score_scale(self) -> float:
        """What the scores of latent attention are multiplied by, besides the usual scale."""
        return yarn_magnitude(self.factor, self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0


@flax.struct.dataclass
class Rotation:
    """Cosines and sines, [B or 1, T, pairs] each, of the angle of each position and pair of elements; and what queries
    are also multiplied by, [B or 1, T]."""

    cos_BTP: jax.Array
    sin_BTP: jax.Array
    growth_BT: jax.Array | None = None
    interleaved: bool = flax.struct.field(pytree_node=False, default=False)

    def where(self, rotated: jax.Array) -> "Rotation":
        """This rotation where `rotated`, bool[], is true, and elsewhere one that changes nothing."""
        return self.replace(cos_BTP=jnp.where(rotated, self.cos_BTP, 1), sin_BTP=jnp.where(rotated, self.sin_BTP, 0))


def yarn_magnitude(factor: float, scale: float) -> float:
    """What YaRN multiplies queries and keys by (Peng et al. 2023, section 3.4), with a scale of the logarithm."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def _lengths(positions_BT: jax.Array) -> jax.Array:
    """int[B or 1, T]: the number of positions of the document that each token belongs to, as far as it is there."""
    T = positions_BT.shape[1]
    ends_BT = jnp.concatenate(
        [positions_BT[:, 1:] <= positions_BT[:, :-1], jnp.ones_like(positions_BT[:, :1], bool)], axis=1
    )
    end_BT = jax.lax.cummin(jnp.where(ends_BT, jnp.arange(T), T), axis=1, reverse=True)
    return jnp.take_along_axis(positions_BT, end_BT, axis=1) + 1


def rotate_queries(q_BTHK: jax.Array, rotation: Rotation) -> jax.Array:
    """Applies rotary positions to queries, and what else a position does to them."""
    q_BTHK = rotate(q_BTHK, rotation)
    if rotation.growth_BT is None:
        return q_BTHK
    return q_BTHK * rotation.growth_BT[:, :, None, None].astype(q_BTHK.dtype)


def rotate(x_BTHK: jax.Array, rotation: Rotation) -> jax.Array:
    """Applies rotary positions to the first elements of each head, as many as there are angles for: the two elements of
    a pair are rotated as a vector, so that query-key products depend only on relative position."""
    cos, sin = rotation.cos_BTP[:, :, None], rotation.sin_BTP[:, :, None]
    turned, rest = jnp.split(x_BTHK, [2 * cos.shape[-1]], axis=-1)
    one, other = (turned[..., ::2], turned[..., 1::2]) if rotation.interleaved else jnp.split(turned, 2, axis=-1)
    pair = [x.astype(x_BTHK.dtype) for x in (one * cos - other * sin, other * cos + one * sin)]
    if rotation.interleaved:
        pair = [jnp.stack(pair, axis=-1).reshape(turned.shape)]
    return jnp.concatenate([*pair, rest], axis=-1)
