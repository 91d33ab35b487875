"""Learn what a larger model knows: its guesses, its hidden states, its attention."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo import names, registry, trees
from transformer_zoo.nn import Output
from transformer_zoo.nn.stack import STACKED
from transformer_zoo.objectives.losses import cross_entropy
from transformer_zoo.objectives.masked_lm import MaskedLM
from transformer_zoo.objectives.objective import Batch, Sums

Relation = Literal["attention", "query", "key", "value"]


class Pair(nn.Module):
    """A student and its teacher, who read the same."""

    student: nn.Module
    teacher: nn.Module

    @property
    def config(self) -> Any:
        return self.student.config

    @property
    def task(self) -> str:
        return self.student.task

    @property
    def compute(self) -> Any:
        return self.student.compute

    def __call__(
        self,
        tokens_BT: jax.Array,
        valid_BT: jax.Array | None = None,
        places_BP: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Output, Output]:
        """What both say, their scores [B, P, V] at these places alone (None: everywhere). A teacher has no dropout."""

        def read(model: nn.Module, train: bool) -> Output:
            hidden_BTD = model(tokens_BT, valid_BT=valid_BT, train=train).hidden_BTD
            at = hidden_BTD if places_BP is None else jnp.take_along_axis(hidden_BTD, places_BP[..., None], axis=1)
            return Output(hidden_BTD=hidden_BTD, logits=model.logits(at))

        return read(self.student, train), read(self.teacher, False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(MaskedLM):
    """A student learns from a teacher, which stays as it is. The losses are added, each with its weight; one of weight
    0 is left out. By default they are the three of DistilBERT (Sanh et al. 2019, section 3), with its code's weights.

    Raises:
        ValueError: a weight, temperature or number of heads that is none, an unknown relation; and as `MaskedLM`.
    """

    name: ClassVar[str] = "distillation"
    frozen: ClassVar[tuple[str, ...]] = (r"teacher/.*",)
    fixed: ClassVar[tuple[str, ...]] = ("architecture",)

    teacher: str
    """A masked language model with the same tokens: a run's folder, a hub id, a preset or a folder."""
    architecture: str | None = None
    """The teacher's, as JSON. None: looked up; a run writes it down, so that its student does not need the teacher."""
    layers: tuple[int, ...] | None = None
    """Which of the teacher's layers, from 0, those of the student begin as; all else begins as the teacher's too. None:
    spread evenly, such as 0, 2, 4, ...; (): the student begins fresh."""
    soft_weight: float = 5.0
    """Of the divergence of the student's guesses from the teacher's (Hinton et al. 2015)."""
    masked_weight: float = 2.0
    """Of the masked language model's own loss."""
    cosine_weight: float = 1.0
    """Of 1 - cosine of the last hidden states."""
    relation_weight: float = 0.0
    """Of the divergence of the relations of tokens from the teacher's."""
    temperature: float = 2.0
    """That flattens the guesses of both."""
    everywhere: bool = False
    """Guesses are compared at every token, as in DistilBERT's code, and not at the hidden ones alone: that needs the
    output layer everywhere, twice."""
    relations: tuple[Relation, ...] = ("attention", "value")
    """What of the attention in the student's last layer is to be like the teacher's: attention, value: MiniLM (Wang et
    al. 2020, section 3.1); query, key, value: its second version (Wang et al. 2021, section 3.1)."""
    relation_heads: int | None = None
    """Into how many heads queries, keys and values are divided anew for their relations, so that the numbers of heads
    may differ (Wang et al. 2021). None: as the models divide them."""
    relation_layer: int = -1
    """The teacher's layer, from 0, or from -1 at the end. Of large teachers not the last is best (Wang et al. 2021)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = (self.soft_weight, self.masked_weight, self.cosine_weight, self.relation_weight)
        if min(weights) < 0 or not sum(weights):
            raise ValueError(f"Distillation: weights of losses must be at least 0, and one of them more: {weights}")
        if self.temperature < 1 or (self.relation_heads is not None and self.relation_heads < 1):
            raise ValueError("Distillation: temperature and relation_heads must be at least 1")
        if unknown := set(self.relations) - set(get_args(Relation)):
            raise ValueError(f"Distillation.relations has {unknown}: choose of {', '.join(get_args(Relation))}")
        if self.relation_weight and not self.relations:
            raise ValueError("Distillation.relation_weight weighs nothing: relations is empty")

    # ---- both models --------------------------------------------------------------------------------------------

    def for_data(self, config: Any, classes: Callable[[str], tuple[str, ...] | None]) -> tuple["Distillation", Any]:
        """The objective with the teacher's architecture."""
        return dataclasses.replace(self, architecture=json.dumps(registry.as_json(self._teacher()))), config

    def _teacher(self) -> Any:
        if self.architecture is None:
            return names.describe(self.teacher).config
        return registry.from_json(json.loads(self.architecture))

    def model(self, config: Any, compute: Any) -> Pair:
        """Both, with their parameters under `student/` and `teacher/`.

        Raises:
            ValueError: they cannot be compared as the losses want it.
        """
        teacher = self._teacher()
        same = {"vocab_size": True, "width": self.cosine_weight > 0}
        if self.relation_weight:
            redivided = self.relation_heads is not None and "attention" not in self.relations
            same["num_heads"] = not redivided
        for name, needed in same.items():
            if needed and getattr(config, name) != getattr(teacher, name):
                raise ValueError(
                    f"the student's {name} is {getattr(config, name)} and that of the teacher {self.teacher} "
                    f"{getattr(teacher, name)}: with these losses they must be equal"
                )
        if self.relation_weight:
            if self.relation_heads and (config.width % self.relation_heads or teacher.width % self.relation_heads):
                raise ValueError(
                    f"objective.relation_heads={self.relation_heads} must divide the widths of student and teacher, "
                    f"{config.width} and {teacher.width}"
                )
            if not -teacher.num_layers <= self.relation_layer < teacher.num_layers:
                raise ValueError(f"relation_layer={self.relation_layer}: the teacher has {teacher.num_layers} layers")
        return Pair(student=self.part(config, self.task, compute), teacher=self.part(teacher, self.task, compute))

    def begin(self, params: trees.Tree, load: Callable[..., Any]) -> trees.Tree:
        """The teacher as it is, and the student with layers of the teacher's."""
        bundle = load(self.teacher, task=self.task)
        if bundle.fresh:
            raise ValueError(f"the teacher {self.teacher} is no masked language model: it has no {bundle.fresh[0]}")
        shapes = lambda tree: {path: x.shape for path, x in trees.flatten(tree).items()}
        if shapes(bundle.params) != shapes(params["teacher"]):
            raise ValueError(f"the teacher {self.teacher} is another than objective.architecture says")
        student = params["student"]
        if self.layers != ():
            student = jax.jit(functools.partial(inherit, layers=self.layers))(student, bundle.params)
        return {"student": student, "teacher": bundle.params}

    def result(self, model: Pair, params: trees.Tree) -> tuple[Any, trees.Tree]:
        """The student."""
        return model.student, params["student"]

    # ---- losses -------------------------------------------------------------------------------------------------

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Of each loss its sum over the tokens that it is of. Of the hidden tokens also the teacher's own loss, and how
        often either guess is right."""
        tokens_BT, valid_BT, masked_BP = batch["tokens_BT"], batch["valid_BT"], batch["masked_BP"]
        (student, teacher), asked = model.apply(
            {"params": params | {"teacher": jax.lax.stop_gradient(params["teacher"])}},
            tokens_BT,
            valid_BT=valid_BT,
            places_BP=None if self.everywhere else masked_BP,
            train=key is not None,
            rngs=None if key is None else {"dropout": key},
            mutable=["intermediates"] if self.relation_weight else [],
        )
        sums = {}
        for name, said in (("", student), ("teacher_", teacher)):
            guesses_BPV = said.logits
            if self.everywhere:
                guesses_BPV = jnp.take_along_axis(guesses_BPV, masked_BP[..., None], axis=1)
            nats, extra = cross_entropy(lambda _, x: x, None, guesses_BPV, batch["targets_BP"], batch["weights_BP"])
            sums |= {f"{name}nats": nats, f"{name}correct": extra["correct"]}
        if self.soft_weight:
            weights = valid_BT if self.everywhere else batch["weights_BP"]
            sums["soft"] = soft(student.logits, teacher.logits, weights, self.temperature)
        if self.cosine_weight:
            sums["cosine"] = cosine(student.hidden_BTD, teacher.hidden_BTD, valid_BT)
        if self.relation_weight:
            for name in self.relations:
                layers = {"student": -1, "teacher": self.relation_layer}
                pair = (self._relation(asked["intermediates"][who], name, at, valid_BT) for who, at in layers.items())
                sums[f"{name}_relation"] = (divergence(*pair).mean(axis=1) * valid_BT).sum()
        return sums

    def _relation(self, asked: trees.Tree, name: Relation, layer: int, valid_BT: jax.Array) -> jax.Array:
        """Logarithms of a relation [B, H, T, S] in a layer."""
        sown = {"attention": "weights_BHTS", "query": "queries_BTHK", "key": "keys_BSGK", "value": "values_BSGK"}[name]
        found = [x for path, x in trees.flatten(asked).items() if path.endswith(f"attention/{sown}")]
        if len(found) != 1 or len(found[0]) != 1:
            raise ValueError(f"a model that shows no {sown} of its attention cannot be told by its {name} relations")
        x = found[0][0][layer]
        if name == "attention":
            return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))
        return relation(
            x if self.relation_heads is None else x.reshape(*x.shape[:2], self.relation_heads, -1), valid_BT
        )

    def _losses(self, sums: Sums, counts: Sums) -> dict[str, tuple[float, jax.Array]]:
        """Of each loss its weight and its mean."""
        tokens, masked = jnp.maximum(counts["tokens"], 1), jnp.maximum(counts["masked"], 1)
        losses = {}
        if self.masked_weight:
            losses["masked_loss"] = self.masked_weight, sums["nats"] / masked
        if self.soft_weight:
            losses["soft_loss"] = self.soft_weight, sums["soft"] / (tokens if self.everywhere else masked)
        if self.cosine_weight:
            losses["cosine_loss"] = self.cosine_weight, sums["cosine"] / tokens
        if self.relation_weight:
            for name in self.relations:
                losses[f"{name}_loss"] = self.relation_weight, sums[f"{name}_relation"] / tokens
        return losses

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """All losses, weighted."""
        return sum(weight * loss for weight, loss in self._losses(sums, counts).values())

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """The loss and each of its parts; perplexity and accuracy over the hidden tokens, and the teacher's."""
        masked = jnp.maximum(counts["masked"], 1)
        return {
            "loss": self.loss(sums, counts),
            **{name: loss for name, (_, loss) in self._losses(sums, counts).items()},
            "perplexity": jnp.exp(sums["nats"] / masked),
            "accuracy": sums["correct"] / masked,
            "teacher_perplexity": jnp.exp(sums["teacher_nats"] / masked),
            "teacher_accuracy": sums["teacher_correct"] / masked,
        }


# ---- what is compared -----------------------------------------------------------------------------------------------


def divergence(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """KL(teacher || student) in nats, [...], of logarithms of probabilities [..., N]."""
    return (jnp.exp(teacher) * (teacher - student)).sum(axis=-1)


def soft(student_BPV: jax.Array, teacher_BPV: jax.Array, weights_BP: jax.Array, temperature: float) -> jax.Array:
    """The divergence of scores from the teacher's, both flattened by the temperature, whose square restores the size of
    the gradients (Hinton et al. 2015, section 2)."""
    flat = (jax.nn.log_softmax(x / temperature) for x in (student_BPV, teacher_BPV))
    return (divergence(*flat) * weights_BP).sum() * temperature**2


def cosine(student_BTD: jax.Array, teacher_BTD: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """The sum of 1 - cosine of vectors with a weight."""
    wide = jnp.promote_types(student_BTD.dtype, jnp.float32)
    s, t = student_BTD.astype(wide), teacher_BTD.astype(wide)
    lengths_BT = jnp.sqrt((s * s).sum(axis=-1) * (t * t).sum(axis=-1) + 1e-12)
    return ((1 - (s * t).sum(axis=-1) / lengths_BT) * weights_BT.astype(wide)).sum()


def relation(x_BTHK: jax.Array, valid_BT: jax.Array) -> jax.Array:
    """Logarithms of softmax(x x^T / sqrt(K)), [B, H, T, S], over real tokens (Wang et al. 2020, equation 6)."""
    x_BTHK = x_BTHK.astype(jnp.promote_types(x_BTHK.dtype, jnp.float32)) / x_BTHK.shape[-1] ** 0.25
    scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", x_BTHK, x_BTHK)
    return jax.nn.log_softmax(jnp.where(valid_BT[:, None, None], scores_BHTS, jnp.finfo(scores_BHTS.dtype).min))


# ---- teacher and student --------------------------------------------------------------------------------------------


def inherit(student: trees.Tree, teacher: trees.Tree, layers: tuple[int, ...] | None = None) -> trees.Tree:
    """The student's parameters as the teacher has them, of its layers these.

    Raises:
        ValueError: the teacher has not so many layers, or the student something that the teacher has not.
    """
    theirs = trees.flatten(teacher)

    def one(path: str, own: jax.Array) -> jax.Array:
        x = theirs.get(path)
        if x is not None and re.fullmatch(STACKED, path):
            chosen = spread(len(own), len(x)) if layers is None else layers
            if len(chosen) != len(own) or not all(0 <= layer < len(x) for layer in chosen):
                raise ValueError(
                    f"objective.layers={list(chosen)}: the student has {len(own)} layers, and for each of them it must "
                    f"name one of the teacher's {len(x)}, from 0"
                )
            x = x[jnp.array(chosen)]
        if x is None or x.shape != own.shape:
            raise ValueError(
                f"the student's {path} has the shape {own.shape}, and the teacher's "
                f"{'does not exist' if x is None else x.shape}: with objective.layers=() the student begins fresh"
            )
        return x

    return trees.map_paths(one, student)


def spread(few: int, many: int) -> tuple[int, ...]:
    """So few of many layers, evenly from the first: of 12, 6 are every other one."""
    return tuple(i * many // few for i in range(few))
