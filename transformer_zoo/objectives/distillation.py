"""Learn from a larger model: its predictions, its hidden states, its attention."""

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
from transformer_zoo.objectives.objective import Batch, Sums, attributes_of, training_mode

Relation = Literal["attention", "query", "key", "value"]


class Pair(nn.Module):
    """A student and its teacher, with the same inputs."""

    student: nn.Module
    teacher: nn.Module
    config, task, compute = attributes_of("student")

    def __call__(
        self,
        tokens_BT: jax.Array,
        valid_BT: jax.Array | None = None,
        masked_BP: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Output, Output]:
        """The outputs of both, with logits [B, P, V] only at these positions (None: [B, T, V] at all). The teacher has
        no dropout."""

        def read(model: nn.Module, train: bool) -> Output:
            hidden_BTD = model(tokens_BT, valid_BT=valid_BT, train=train).hidden_BTD
            at = hidden_BTD if masked_BP is None else jnp.take_along_axis(hidden_BTD, masked_BP[..., None], axis=1)
            return Output(hidden_BTD=hidden_BTD, logits=model.logits(at))

        return read(self.student, train), read(self.teacher, False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(MaskedLM):
    """A student learns from a frozen teacher. The loss is a weighted sum of losses; those with weight 0 are not
    computed. By default they are the three of DistilBERT (Sanh et al. 2019, section 3), with the weights of its code.

    Raises:
        ValueError: negative weights or none above 0, a temperature or number of heads below 1, an unknown relation; and
            as `MaskedLM`.
    """

    name: ClassVar[str] = "distillation"
    frozen: ClassVar[tuple[str, ...]] = (r"teacher/.*",)
    fixed: ClassVar[tuple[str, ...]] = ("architecture",)

    teacher: str
    """A masked language model with the same tokens: a run's folder, a hub id, a preset or a folder."""
    architecture: str | None = None
    """The teacher's, as JSON. None: looked up. A run saves it, so that its student can be loaded without the
    teacher."""
    layers: tuple[int, ...] | None = None
    """The teacher's layers, from 0, from which the student's are initialised; all other parameters are the teacher's
    too. None: spread evenly, such as 0, 2, 4, ...; (): the student begins fresh."""
    soft_weight: float = 5.0
    """Weight of the KL divergence of the student's predictions from the teacher's (Hinton et al. 2015)."""
    masked_weight: float = 2.0
    """Weight of the masked language model's own loss."""
    cosine_weight: float = 1.0
    """Weight of 1 - cosine of the last hidden states."""
    relation_weight: float = 0.0
    """Weight of the KL divergence of the relations between tokens from the teacher's."""
    temperature: float = 2.0
    """Of the softmax in the divergence of the predictions."""
    everywhere: bool = False
    """Predictions are compared at every token, as in DistilBERT's code, and not only at the hidden ones. This applies
    both output layers to every token."""
    relations: tuple[Relation, ...] = ("attention", "value")
    """Relations that are compared in the student's last layer: attention, value: MiniLM (Wang et al. 2020, section
    3.1); query, key, value: MiniLMv2 (Wang et al. 2021, section 3.1)."""
    relation_heads: int | None = None
    """Heads into which queries, keys and values are divided for their relations, so that the models' numbers of heads
    may differ (Wang et al. 2021). None: the models' own heads."""
    relation_layer: int = -1
    """The teacher's layer, from 0, or from -1 at the end. For large teachers, an earlier one than the last is best
    (Wang et al. 2021)."""

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
            raise ValueError("Distillation.relation_weight is set and relations is empty: name some")

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
            ValueError: sizes that must be equal for these losses differ.
        """
        teacher = self._teacher()
        same = {"vocab_size": True, "width": self.cosine_weight > 0}
        if self.relation_weight:
            redivided = self.relation_heads is not None and "attention" not in self.relations
            same["num_heads"] = not redivided
        for name, needed in same.items():
            if needed and getattr(config, name) != getattr(teacher, name):
                raise ValueError(
                    f"the student's {name} is {getattr(config, name)} and the teacher's ({self.teacher}) "
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
        """The teacher's parameters, and the student's, initialised from them."""
        bundle = load(self.teacher, task=self.task)
        if bundle.fresh:
            raise ValueError(f"the teacher {self.teacher} is not a masked language model: it lacks {bundle.fresh[0]}")
        shapes = lambda tree: {path: x.shape for path, x in trees.flatten(tree).items()}
        if shapes(bundle.params) != shapes(params["teacher"]):
            raise ValueError(f"the teacher {self.teacher} does not have the architecture in objective.architecture")
        student = params["student"]
        if self.layers != ():
            student = jax.jit(functools.partial(inherit, layers=self.layers))(student, bundle.params)
        return {"student": student, "teacher": bundle.params}

    def result(self, model: Pair, params: trees.Tree) -> tuple[Any, trees.Tree]:
        """The student."""
        return model.student, params["student"]

    # ---- losses -------------------------------------------------------------------------------------------------

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """The sum of each loss over its tokens; over the hidden tokens also the teacher's own loss, and the correct
        predictions of both."""
        tokens_BT, valid_BT, masked_BP = batch["tokens_BT"], batch["valid_BT"], batch["masked_BP"]
        (student, teacher), variables = model.apply(
            {"params": params | {"teacher": jax.lax.stop_gradient(params["teacher"])}},
            tokens_BT,
            valid_BT=valid_BT,
            masked_BP=None if self.everywhere else masked_BP,
            **training_mode(key),
            mutable=["intermediates"] if self.relation_weight else [],
        )
        sums = {}
        for name, output in (("", student), ("teacher_", teacher)):
            logits_BPV = output.logits
            if self.everywhere:
                logits_BPV = jnp.take_along_axis(logits_BPV, masked_BP[..., None], axis=1)
            nats, extra = cross_entropy(lambda _, x: x, None, logits_BPV, batch["targets_BP"], batch["weights_BP"])
            sums |= {f"{name}nats": nats, f"{name}correct": extra["correct"]}
        if self.soft_weight:
            weights = valid_BT if self.everywhere else batch["weights_BP"]
            sums["soft"] = soft(student.logits, teacher.logits, weights, self.temperature)
        if self.cosine_weight:
            sums["cosine"] = cosine(student.hidden_BTD, teacher.hidden_BTD, valid_BT)
        if self.relation_weight:
            for name in self.relations:
                layers = {"student": -1, "teacher": self.relation_layer}
                sown = variables["intermediates"]
                pair = (self._relation(sown[model], name, layer, valid_BT) for model, layer in layers.items())
                sums[f"{name}_relation"] = (divergence(*pair).mean(axis=1) * valid_BT).sum()
        return sums

    def _relation(self, sown: trees.Tree, name: Relation, layer: int, valid_BT: jax.Array) -> jax.Array:
        """Log probabilities of a relation [B, H, T, S] in a layer, from a model's intermediates."""
        array = {"attention": "weights_BHTS", "query": "queries_BTHK", "key": "keys_BSGK", "value": "values_BSGK"}[name]
        found = [x for path, x in trees.flatten(sown).items() if path.endswith(f"attention/{array}")]
        if len(found) != 1 or len(found[0]) != 1:
            raise ValueError(f"{name} relations need the {array} of one attention, which a model does not sow")
        x = found[0][0][layer]
        if name == "attention":
            return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))
        return relation(
            x if self.relation_heads is None else x.reshape(*x.shape[:2], self.relation_heads, -1), valid_BT
        )

    def _losses(self, sums: Sums, counts: Sums) -> dict[str, tuple[float, jax.Array]]:
        """The weight and the mean of each loss."""
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

    @property
    def loss_unit(self) -> str:
        """The losses and their weights."""
        names = ("soft", "masked", "cosine", "relation")
        weights = {name: getattr(self, f"{name}_weight") for name in names}
        return " + ".join(f"{weight:g} x {name}" for name, weight in weights.items() if weight)

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """The weighted sum of the losses."""
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
    """KL(teacher || student) in nats, [...], from log probabilities [..., N]."""
    return (jnp.exp(teacher) * (teacher - student)).sum(axis=-1)


def soft(student_BPV: jax.Array, teacher_BPV: jax.Array, weights_BP: jax.Array, temperature: float) -> jax.Array:
    """The summed divergence of logits from the teacher's at a temperature, times its square, which restores the scale
    of the gradients (Hinton et al. 2015, section 2)."""
    log_probabilities = (jax.nn.log_softmax(x / temperature) for x in (student_BPV, teacher_BPV))
    return (divergence(*log_probabilities) * weights_BP).sum() * temperature**2


def cosine(student_BTD: jax.Array, teacher_BTD: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """The weighted sum of 1 - cosine of vectors."""
    dtype = jnp.promote_types(student_BTD.dtype, jnp.float32)
    s, t = student_BTD.astype(dtype), teacher_BTD.astype(dtype)
    lengths_BT = jnp.sqrt((s * s).sum(axis=-1) * (t * t).sum(axis=-1) + 1e-12)
    return ((1 - (s * t).sum(axis=-1) / lengths_BT) * weights_BT.astype(dtype)).sum()


def relation(x_BTHK: jax.Array, valid_BT: jax.Array) -> jax.Array:
    """log softmax(x x^T / sqrt(K)), [B, H, T, S], over the valid positions S (Wang et al. 2020, equation 6)."""
    x_BTHK = x_BTHK.astype(jnp.promote_types(x_BTHK.dtype, jnp.float32)) / x_BTHK.shape[-1] ** 0.25
    scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", x_BTHK, x_BTHK)
    return jax.nn.log_softmax(jnp.where(valid_BT[:, None, None], scores_BHTS, jnp.finfo(scores_BHTS.dtype).min))


# ---- teacher and student --------------------------------------------------------------------------------------------


def inherit(student: trees.Tree, teacher: trees.Tree, layers: tuple[int, ...] | None = None) -> trees.Tree:
    """The student's parameters, copied from the teacher's, with these of its layers.

    Raises:
        ValueError: a layer that the teacher lacks; a parameter of the student that the teacher lacks, or of other
        shape.
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
    """The indices of `few` of `many` layers, evenly spaced from the first: 6 of 12 are every other one."""
    return tuple(i * many // few for i in range(few))
