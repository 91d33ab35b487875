"""Tell which tokens of a text have been replaced, by a small model that learns beside to guess hidden ones."""

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
from transformer_zoo.objectives.objective import Batch, Sums

# What turns tokens into the input of the first layer, but for its projection to the width: it lies in the
# discriminator, and the generator uses it too.
SHARED = r"(token|position|segment)_embed/embedding|embed_norm/(scale|bias)"


@struct.dataclass
class Judgement:
    """What generator and discriminator say of a batch.

    Attributes:
        guesses_BPV: the generator's scores of what the hidden tokens are.
        corrupted_BT: the text with its guesses, as the discriminator reads it.
        replaced_BT: where that is not what was there.
        scores_BT: the discriminator's: above 0, a token has been replaced.
    """

    guesses_BPV: jax.Array
    corrupted_BT: jax.Array
    replaced_BT: jax.Array
    scores_BT: jax.Array


class Detector(nn.Module):
    """A generator and a discriminator over the same embeddings."""

    generator: nn.Module
    discriminator: nn.Module
    temperature: float

    @property
    def config(self) -> Any:
        return self.discriminator.config

    @property
    def task(self) -> str:
        return self.discriminator.task

    @property
    def compute(self) -> Any:
        return self.discriminator.compute

    def __call__(
        self,
        tokens_BT: jax.Array,
        valid_BT: jax.Array | None,
        masked_BP: jax.Array,
        targets_BP: jax.Array,
        weights_BP: jax.Array,
        train: bool = False,
    ) -> Judgement:
        """Takes the arrays of a masked language model. Needs the random numbers `sample`, and in training `dropout`."""
        hidden_BTD = self.generator(tokens_BT, valid_BT=valid_BT, train=train).hidden_BTD
        guesses_BPV = self.generator.logits(jnp.take_along_axis(hidden_BTD, masked_BP[..., None], axis=1))
        sampled_BP = sample(guesses_BPV, self.make_rng("sample"), self.temperature)
        original_BT = put(tokens_BT, masked_BP, targets_BP, weights_BP)
        corrupted_BT = put(tokens_BT, masked_BP, sampled_BP, weights_BP)
        scores_BT = self.discriminator(corrupted_BT, valid_BT=valid_BT, train=train).logits
        return Judgement(guesses_BPV, corrupted_BT, corrupted_BT != original_BT, scores_BT)

    @nn.nowrap
    def init(self, key: jax.Array, tokens_BT: jax.Array) -> dict[str, Any]:
        """Fresh parameters, those that are shared once.

        Raises:
            ValueError: the generator cannot use the discriminator's.
        """
        some_BP = tokens_BT[:, :1]
        params = super().init({"params": key, "sample": key}, tokens_BT, None, some_BP, some_BP, some_BP)["params"]
        own, others = trees.flatten(params["generator"]), _shared(params)
        if misfits := [path for path, x in others.items() if path not in own or own[path].shape != x.shape]:
            raise ValueError(
                f"generator and discriminator cannot share {', '.join(misfits)}, as wide as the layers of "
                f"{type(self.config).__module__}: take a generator of the same size (objective.generator_size=1)"
            )
        own = {path: x for path, x in own.items() if path not in others}
        return {"params": params | {"generator": trees.unflatten(own)}}

    @nn.nowrap
    def apply(self, variables: dict[str, Any], *args: Any, **how: Any) -> Any:
        """As any module's, with the shared parameters in both places."""
        params = variables["params"]
        generator = trees.unflatten(trees.flatten(params["generator"]) | _shared(params))
        return super().apply({"params": params | {"generator": generator}}, *args, **how)


def _shared(params: trees.Tree) -> dict[str, jax.Array]:
    return {path: x for path, x in trees.flatten(params["discriminator"]).items() if re.fullmatch(SHARED, path)}


def sample(scores_BPV: jax.Array, key: jax.Array, temperature: float = 1.0) -> jax.Array:
    """int32[B, P]: tokens drawn from softmax(scores / temperature), by the Gumbel trick; of temperature 0 the best.

    No gradient flows through them.
    """
    noise_BPV = jax.random.gumbel(key, scores_BPV.shape, scores_BPV.dtype)
    return (jax.lax.stop_gradient(scores_BPV) + temperature * noise_BPV).argmax(axis=-1).astype(jnp.int32)


def put(tokens_BT: jax.Array, places_BP: jax.Array, new_BP: jax.Array, weights_BP: jax.Array) -> jax.Array:
    """The tokens with new ones at those of the places that have a weight."""
    places_BP = jnp.where(weights_BP > 0, places_BP, tokens_BT.shape[1])  # the others are none
    return jax.vmap(lambda tokens, places, new: tokens.at[places].set(new, mode="drop"))(tokens_BT, places_BP, new_BP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedTokens(MaskedLM):
    """ELECTRA's pretraining (Clark et al. 2020, sections 2 and 3): a generator learns to guess hidden tokens, by
    maximum likelihood, and a discriminator to tell of every token whether it is a guess of the generator's, other than
    what was there. The two losses are added; the discriminator is what one wants in the end.

    Raises:
        ValueError: a size, weight or temperature that is none; and as `MaskedLM`.
    """

    name: ClassVar[str] = "replaced-token-detection"
    task: ClassVar[str] = "replaced-token-detection"
    fixed: ClassVar[tuple[str, ...]] = ("generator_size",)

    mask_share: float = 1.0
    """Of the tokens to guess, how many the generator sees as a mask: all of them in the paper, 0.85 in its code."""
    random_share: float = 0.0
    """How many it sees as some other token. The rest it sees as they are."""
    generator_size: float = 0.25
    """Heads, and with them the width, and the MLP of the generator, as a share of the discriminator's; 1/4 to 1/2."""
    discriminator_weight: float = 50.0
    """Of its loss, beside the generator's."""
    sampling_temperature: float = 1.0
    """With which the generator's guesses are drawn; 0: always the best."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.generator_size <= 1:
            raise ValueError(f"ReplacedTokens.generator_size is {self.generator_size}: it is a share, of more than 0")
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
        """Nats and right guesses over the hidden tokens; over all tokens nats, and how many have been replaced, are
        held to be, and both. Without a key, guesses are drawn alike in each batch."""
        dropout, drawing = jax.random.split(jax.random.key(0) if key is None else key)
        given = {name: batch[name] for name in ("tokens_BT", "valid_BT", "masked_BP", "targets_BP", "weights_BP")}
        rngs = {"dropout": dropout, "sample": drawing}
        said = model.apply({"params": params}, **given, train=key is not None, rngs=rngs)
        nats, extra = cross_entropy(
            lambda _, scores_BPV: scores_BPV, None, said.guesses_BPV, batch["targets_BP"], batch["weights_BP"]
        )
        scores_BT, real_BT = said.scores_BT, batch["valid_BT"].astype(said.scores_BT.dtype)
        replaced_BT, suspected_BT = said.replaced_BT * real_BT, (scores_BT > 0) * real_BT
        judged_nats_BT = jax.nn.softplus(scores_BT) - replaced_BT * scores_BT
        return {
            "nats": nats,
            **extra,
            "judged_nats": (judged_nats_BT * real_BT).sum(),
            "replaced": replaced_BT.sum(),
            "suspected": suspected_BT.sum(),
            "found": (replaced_BT * suspected_BT).sum(),
        }

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a hidden token, and, weighted, nats a token."""
        return super().loss(sums, counts) + self.discriminator_weight * self._judged(sums, counts)

    def _judged(self, sums: Sums, counts: Sums) -> jax.Array:
        return sums["judged_nats"] / jnp.maximum(counts["tokens"], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """The loss, and both its parts; how often the generator's best guess is right; of the discriminator its
        accuracy, and precision, recall and F1 of the replaced tokens; what share of all tokens these are."""
        tokens = jnp.maximum(counts["tokens"], 1)
        found, suspected, replaced = sums["found"], sums["suspected"], sums["replaced"]
        return {
            "loss": self.loss(sums, counts),
            "generator_loss": super().loss(sums, counts),
            "generator_accuracy": sums["correct"] / jnp.maximum(counts["masked"], 1),
            "discriminator_loss": self._judged(sums, counts),
            "accuracy": 1 - (suspected + replaced - 2 * found) / tokens,
            "precision": found / jnp.maximum(suspected, 1),
            "recall": found / jnp.maximum(replaced, 1),
            "f1": f1_of(found, suspected, replaced),
            "replaced": replaced / tokens,
        }
