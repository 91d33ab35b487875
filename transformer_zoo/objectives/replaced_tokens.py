"""Detect the tokens that a small generator, trained alongside, has replaced."""

import dataclasses
import re
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from transformer_zoo import trees
from transformer_zoo.objectives.losses import cross_entropy
from transformer_zoo.objectives.masked_lm import MaskedLM
from transformer_zoo.objectives.metrics import f1_of
from transformer_zoo.objectives.objective import Batch, Sums, attributes_of

# The embeddings: stored in the discriminator and shared with the generator. The projection to the width is not shared.
SHARED = r"(token|position|segment)_embed/embedding|embed_norm/(scale|bias)"


@struct.dataclass
class Detection:
    """The outputs of generator and discriminator for a batch.

    Attributes:
        logits_BPV: the generator's, at the hidden tokens.
        corrupted_BT: the text with tokens sampled from these, which the discriminator reads.
        replaced_BT: where the text and the corrupted text differ.
        scores_BT: the discriminator's logits; above 0, the token is classified as replaced.
    """

    logits_BPV: jax.Array
    corrupted_BT: jax.Array
    replaced_BT: jax.Array
    scores_BT: jax.Array


class Detector(nn.Module):
    """A generator and a discriminator over the same embeddings."""

    generator: nn.Module
    discriminator: nn.Module
    temperature: float
    config, task, compute = attributes_of("discriminator")

    def __call__(
        self,
        tokens_BT: jax.Array,
        valid_BT: jax.Array | None,
        masked_BP: jax.Array,
        targets_BP: jax.Array,
        weights_BP: jax.Array,
        train: bool = False,
    ) -> Detection:
        """Takes the arrays of a masked language model. Needs the rngs `sample` and, in training, `dropout`."""
        hidden_BTD = self.generator(tokens_BT, valid_BT=valid_BT, train=train).hidden_BTD
        logits_BPV = self.generator.logits(jnp.take_along_axis(hidden_BTD, masked_BP[..., None], axis=1))
        sampled_BP = sample(logits_BPV, self.make_rng("sample"), self.temperature)
        original_BT = put(tokens_BT, masked_BP, targets_BP, weights_BP)
        corrupted_BT = put(tokens_BT, masked_BP, sampled_BP, weights_BP)
        scores_BT = self.discriminator(corrupted_BT, valid_BT=valid_BT, train=train).logits
        return Detection(logits_BPV, corrupted_BT, corrupted_BT != original_BT, scores_BT)

    @nn.nowrap
    def init(self, key: jax.Array, tokens_BT: jax.Array) -> dict[str, Any]:
        """Fresh parameters, with the shared ones only in the discriminator.

        Raises:
            ValueError: the shapes of the shared parameters differ in the generator.
        """
        some_BP = tokens_BT[:, :1]
        params = super().init({"params": key, "sample": key}, tokens_BT, None, some_BP, some_BP, some_BP)["params"]
        own, shared = trees.flatten(params["generator"]), _shared(params)
        if misfits := [path for path, x in shared.items() if path not in own or own[path].shape != x.shape]:
            raise ValueError(
                f"generator and discriminator cannot share {', '.join(misfits)}, as wide as the layers of "
                f"{type(self.config).__module__}: take a generator of the same size (objective.generator_size=1)"
            )
        own = {path: x for path, x in own.items() if path not in shared}
        return {"params": params | {"generator": trees.unflatten(own)}}

    @nn.nowrap
    def apply(self, variables: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As any module's, with the shared parameters in both models."""
        params = variables["params"]
        generator = trees.unflatten(trees.flatten(params["generator"]) | _shared(params))
        return super().apply({"params": params | {"generator": generator}}, *args, **kwargs)


def _shared(params: trees.Tree) -> dict[str, jax.Array]:
    return {path: x for path, x in trees.flatten(params["discriminator"]).items() if re.fullmatch(SHARED, path)}


def sample(logits_BPV: jax.Array, key: jax.Array, temperature: float = 1.0) -> jax.Array:
    """int32[B, P]: tokens drawn from softmax(logits / temperature), by the Gumbel trick; at temperature 0 the argmax.

    No gradient flows through them.
    """
    noise_BPV = jax.random.gumbel(key, logits_BPV.shape, logits_BPV.dtype)
    return (jax.lax.stop_gradient(logits_BPV) + temperature * noise_BPV).argmax(axis=-1).astype(jnp.int32)


def put(tokens_BT: jax.Array, masked_BP: jax.Array, new_BP: jax.Array, weights_BP: jax.Array) -> jax.Array:
    """The tokens, replaced by new ones at the positions with a weight."""
    masked_BP = jnp.where(weights_BP > 0, masked_BP, tokens_BT.shape[1])  # out of range: dropped
    return jax.vmap(lambda tokens, masked, new: tokens.at[masked].set(new, mode="drop"))(tokens_BT, masked_BP, new_BP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedTokens(MaskedLM):
    """ELECTRA's pretraining (Clark et al. 2020, sections 2 and 3): a generator learns to predict hidden tokens, by
    maximum likelihood, and a discriminator to classify whether a token was replaced by a sample of the generator's. The
    two losses are added; the discriminator is the result.

    Raises:
        ValueError: a size outside (0, 1], a negative weight or temperature; and as `MaskedLM`.
    """

    name: ClassVar[str] = "replaced-token-detection"
    task: ClassVar[str] = "replaced-token-detection"
    fixed: ClassVar[tuple[str, ...]] = ("generator_size",)

    mask_share: float = 1.0
    """Share of the tokens to predict that are replaced by the mask: 1 in the paper, 0.85 in its code."""
    random_share: float = 0.0
    """Share of them that are replaced by a random token. The rest stay as they are."""
    generator_size: float = 0.25
    """Heads (and with them the width) and MLP of the generator, as a share of the discriminator's; 1/4 to 1/2."""
    discriminator_weight: float = 50.0
    """Weight of the discriminator's loss; the generator's has weight 1."""
    sampling_temperature: float = 1.0
    """At which tokens are sampled from the generator; 0: the argmax."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.generator_size <= 1:
            raise ValueError(f"ReplacedTokens.generator_size is {self.generator_size}: it must be a share above 0")
        if self.discriminator_weight < 0 or self.sampling_temperature < 0:
            raise ValueError("ReplacedTokens: discriminator_weight and sampling_temperature must be at least 0")

    def model(self, config: Any, compute: Any) -> Detector:
        """Both, with their parameters under `discriminator/` and `generator/`."""
        heads = max(1, round(self.generator_size * config.num_heads))
        width, mlp_dim = heads * (config.width // config.num_heads), max(1, round(self.generator_size * config.mlp_dim))
        small = dataclasses.replace(config, num_heads=heads, width=width, mlp_dim=mlp_dim)
        return Detector(
            generator=self.part(small, "masked-lm", compute),
            discriminator=self.part(config, self.task, compute),
            temperature=self.sampling_temperature,
        )

    def result(self, model: Detector, params: trees.Tree) -> tuple[Any, trees.Tree]:
        """The discriminator."""
        return model.discriminator, params["discriminator"]

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and correct predictions over the hidden tokens; over all tokens nats, and the numbers of those that are
        replaced, are classified as replaced, and both. Without a key, the samples are the same for each batch."""
        dropout, drawing = jax.random.split(jax.random.key(0) if key is None else key)
        inputs = {name: batch[name] for name in ("tokens_BT", "valid_BT", "masked_BP", "targets_BP", "weights_BP")}
        rngs = {"dropout": dropout, "sample": drawing}
        output = model.apply({"params": params}, **inputs, train=key is not None, rngs=rngs)
        nats, extra = cross_entropy(
            lambda _, logits_BPV: logits_BPV, None, output.logits_BPV, batch["targets_BP"], batch["weights_BP"]
        )
        scores_BT, valid_BT = output.scores_BT, batch["valid_BT"].astype(output.scores_BT.dtype)
        replaced_BT, suspected_BT = output.replaced_BT * valid_BT, (scores_BT > 0) * valid_BT
        detection_nats_BT = jax.nn.softplus(scores_BT) - replaced_BT * scores_BT
        return {
            "nats": nats,
            **extra,
            "detection_nats": (detection_nats_BT * valid_BT).sum(),
            "replaced": replaced_BT.sum(),
            "suspected": suspected_BT.sum(),
            "found": (replaced_BT * suspected_BT).sum(),
        }

    @property
    def loss_unit(self) -> str:
        """With the weight of the discriminator's loss."""
        return f"generator's + {self.discriminator_weight:g} x discriminator's"

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a hidden token plus weighted nats a token."""
        return super().loss(sums, counts) + self.discriminator_weight * self._detection_loss(sums, counts)

    def _detection_loss(self, sums: Sums, counts: Sums) -> jax.Array:
        return sums["detection_nats"] / jnp.maximum(counts["tokens"], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """The loss and its two parts; the generator's accuracy; the discriminator's accuracy, and its precision, recall
        and F1 on replaced tokens; the share of tokens that are replaced."""
        tokens = jnp.maximum(counts["tokens"], 1)
        found, suspected, replaced = sums["found"], sums["suspected"], sums["replaced"]
        return {
            "loss": self.loss(sums, counts),
            "generator_loss": super().loss(sums, counts),
            "generator_accuracy": sums["correct"] / jnp.maximum(counts["masked"], 1),
            "discriminator_loss": self._detection_loss(sums, counts),
            "accuracy": 1 - (suspected + replaced - 2 * found) / tokens,
            "precision": found / jnp.maximum(suspected, 1),
            "recall": found / jnp.maximum(replaced, 1),
            "f1": f1_of(found, suspected, replaced),
            "replaced": replaced / tokens,
        }
