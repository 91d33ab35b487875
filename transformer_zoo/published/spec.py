"""How a family is published, as one value. `checkpoints/config_map.py` and `checkpoints/weight_map.py` read it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transformer_zoo.published.gguf import Gguf
from transformer_zoo.published.rows import Rows

REQUIRED: Any = object()
"""The default of a key that every config.json must have."""

# Task -> the last part of its class's name.
CLASSES = {
    "base": "Model",
    "masked-lm": "ForMaskedLM",
    "next-sentence": "ForNextSentencePrediction",
    "pretraining": "ForPreTraining",
    "replaced-token-detection": "ForPreTraining",
    "causal-lm": "ForCausalLM",
    "seq2seq-lm": "ForConditionalGeneration",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "multiple-choice": "ForMultipleChoice",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """The key of config.json that holds a field of a family's Config."""

    name: str
    default: Any = REQUIRED
    """The value that a config.json without the key stands for."""
    read: Callable[[Any, Mapping[str, Any]], Any] = lambda value, settings: value
    """(the key's value, all settings of the file with their defaults) -> the field's value. It raises
    ValueError for an unsupported value."""
    write: Callable[[Any, Any], Any] = lambda value, config: value
    """(the field's value, the whole Config) -> the key's value."""
    aliases: tuple[str, ...] = ()
    """Other names of the key in published files."""

    @classmethod
    def choice(cls, name: str, values: Mapping[Any, Any], default: Any = REQUIRED) -> "Key":
        """A key whose values stand for those of the field, one for one: {the key's value: the field's value}."""

        def read(value: Any, settings: Mapping[str, Any]) -> Any:
            if value not in list(values):  # not in the mapping itself: a value from JSON may have no hash
                raise ValueError(f"known are {', '.join(map(repr, values))}")
            return values[value]

        def write(ours: Any, config: Any) -> Any:
            if ours not in values.values():
                known = ", ".join(map(repr, values.values()))
                raise ValueError(f"{name} of config.json has no value for {ours!r}, only for {known}")
            return next(value for value, own in values.items() if own == ours)

        return cls(name, default, read, write)


def first_id(value: Any, settings: Mapping[str, Any]) -> Any:
    """Of a key with several token ids, the first: an architecture has one, and generation reads the key itself."""
    return (value[0] if value else None) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A family in the Hugging Face layout: its config.json, and the names and layouts of its tensors."""

    model_type: str
    class_prefix: str
    """The beginning of its classes' names: "Bert" of BertModel, BertForMaskedLM, ..."""
    config: Mapping[str, Key]
    """Field of the family's Config -> key of config.json."""
    body: Rows | Callable[[Any], Rows]
    """The body's tensors; a function of the Config where their names depend on it."""
    heads: Mapping[str, Rows]
    """Task -> the tensors of its head, whose names have no prefix. The tasks of a family are "base" and these."""
    prefix: str = ""
    """The beginning of the names of the body's tensors, except in files for tasks in `prefixes`."""
    prefixes: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"base": ""})
    """Task -> the beginning of these names in its files, where it is not `prefix`."""
    other_prefixes: tuple[str, ...] = ()
    """Other beginnings of these names in files of others."""
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Other model types -> the prefix of their classes. The Config then has a field `model_type`."""
    nested: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Model types of images and text whose config.json describes this model under `text_config` -> keys that may be
    missing there, and their values then, where they are not those of a file of this model alone."""
    unnamed: tuple[str, ...] = ()
    """Model types whose config.json may lack `model_type`: the name of the class then identifies them."""
    classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Task -> the last part of its class's name, where it is not the one in `CLASSES`: "LMHeadModel" of GPT-2."""
    encoder_alone: str | None = None
    """The last part of the name of the class of its encoder alone: a body whose Config has no layers of a decoder."""
    renamed_classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name of a class in old files -> its name today."""
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of config.json -> the only value that is supported, or a tuple of several; also the (first) value of a file
    without the key."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Defaults of keys that hold no field, and that a `Key.read` looks up."""
    derived: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    """Keys of config.json that hold no field -> their value for a Config; `Key.read` looks them up."""
    gguf: Gguf | None = None
    """How it is stored in GGUF files. None: they are not read."""
    num_labels: int = 2
    """The number of labels that a config.json without any stands for."""
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Tensor -> the tensor that it must equal, or is another name of. A name with "/" in front has no prefix."""
    tied_by_tensors: bool = False
    """Whether the output layer is tied is decided by the tensors of a checkpoint, not by its config.json."""
    ignored: tuple[tuple[str, str], ...] = ()
    """(regular expression, reason): tensors that nothing reads."""
    unread: Callable[[Any], tuple[tuple[str, str, str], ...]] = lambda config: ()
    """(Config) -> (regular expression of tensors, that of one of them which shows what they are, what they are): parts
    that the model lacks. A warning tells that they are not read."""
    zero_if_missing: tuple[str, ...] = ()
    """Tensors that are zero where a file lacks them."""
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Task -> regular expression of the parameters that a model for it lacks."""
    constants: Callable[[Any, str], Mapping[str, Any]] = lambda config, task: {}
    """(Config, task) -> tensors that follow from the configuration, and that a published file also holds."""

    def __post_init__(self) -> None:
        unknown = sorted({*self.heads, *self.classes} - CLASSES.keys())
        if unknown:
            raise ValueError(f"{self.model_type}: there is no task {', '.join(unknown)}")
        if self.aliases and "model_type" not in self.config:
            raise ValueError(f"{self.model_type} has aliases but no field model_type to tell them apart")

    @property
    def model_types(self) -> tuple[str, ...]:
        """The values of `model_type` that the family reads, its main one first."""
        return (self.model_type, *self.aliases)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The family's tasks."""
        return ("base", *self.heads)

    def class_names(self, model_type: Any = None) -> dict[str, str]:
        """Task -> the name of its class, for this one of the `model_types` (the main one for any other value)."""
        prefix = self.aliases.get(model_type, self.class_prefix)
        return {task: prefix + self.classes.get(task, CLASSES[task]) for task in self.tasks}

    def encoder_class(self, model_type: Any = None) -> str | None:
        """The name of the class of the encoder alone. None: there is none."""
        prefix = self.aliases.get(model_type, self.class_prefix)
        return None if self.encoder_alone is None else prefix + self.encoder_alone

    @property
    def all_class_names(self) -> set[str | None]:
        """The names of its classes, for all model types, old names included."""
        names = {name for kind in self.model_types for name in self.class_names(kind).values()}
        return names | {*self.renamed_classes} | {self.encoder_class(kind) for kind in self.model_types}

    def rows(self, config: Any) -> Rows:
        """The rows of the body's tensors for a Config."""
        return self.body(config) if callable(self.body) else self.body

    @property
    def key_defaults(self) -> dict[str, Any]:
        """Keys of config.json that may be missing -> the value they then have."""
        own = {key.name: key.default for key in self.config.values() if key.default is not REQUIRED}
        return {**self.defaults, **own}
