"""What an experiment fixes: `Run` and its parts. A recipe is a Python file that defines `config = Run(...)`, or
`config = replace(base, ...)` where `base` is another recipe's.

Every field can be overridden on the command line, `--optimizer.peak-lr 3e-4`; `--help` prints these docstrings.
"""

import dataclasses
import math
import re
import runpy
from pathlib import Path
from typing import Any, Literal

from transformer_zoo import arguments, hugging_face, trees
from transformer_zoo.nn import Compute
from transformer_zoo.nn.checks import check_choices, check_finite, check_range, check_rates, check_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The source of documents, and the rows that are made of them."""

    source: str = "python_stdlib"
    """A source's name, such as python_stdlib or csv:GLOB. An unknown one is refused with a list of all forms, which
    `transformer_zoo.data.sources` describes."""
    validation_source: str | None = None
    """Another source to evaluate on: of local files all of it, and then all local files of `source` are trained on.
    None: the held-out split of `source`."""
    validation_share: float = 0.05
    """Share of the documents of local files that is held out. Not used, and a line says so, where there is a
    validation_source or the source has splits of its own."""
    held_out_by: Literal["inputs", "rows"] = "inputs"
    """What decides whether a document of local files is held out. inputs: the fields that the objective reads, without
    those that it predicts, such that equal texts are all held out or none, whatever their labels are; rows: all fields
    (runs of older versions keep this)."""
    train_split: str = "train"
    """Split to train on."""
    validation_split: str = "validation"
    """Split to evaluate on."""
    length: int = 256
    """Tokens in a row."""
    packing: Literal["documents", "concat"] = "documents"
    """documents: whole documents side by side in a row, without attention across; concat: one long text, cut into
    rows."""
    workers: int = 0
    """Processes that prepare batches; they change the speed, never the batches."""

    def __post_init__(self) -> None:
        check_range(self, "length", least=2)
        check_choices(self)
        check_range(self, "workers", least=0)
        check_range(self, "validation_share", above=0, below=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tokenizer."""

    path: str | None = None
    """A file, a folder, or a model's hub id. None: one is trained on the training split, and kept."""
    kind: Literal["bpe", "roberta", "wordpiece", "t5"] = "bpe"
    """The kind that is trained: byte-level BPE; the same with the special tokens of RoBERTa and BART; BERT's WordPiece;
    byte-level BPE with the special tokens and sentinels of T5."""
    size: int = 8192
    """Tokens, if it is trained."""
    lower_case: bool = False
    """WordPiece is trained on lower case without accents."""
    chat_template: str | None = None
    """A file with a chat template in Jinja, which the run and its export then have in place of the tokenizer's own."""

    def __post_init__(self) -> None:
        check_sizes(self, "size")
        check_choices(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer and its schedule."""

    name: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    """Loshchilov and Hutter 2019; Shazeer and Stern 2018 (rates relative to the parameter); Chen 2023; Jordan 2024."""
    peak_lr: float = 1e-3
    """Learning rate at the end of the warmup."""
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    """After the warmup. inverse_sqrt: Vaswani et al. 2017; wsd: constant, then linear to the end (Hu 2024)."""
    warmup_steps: int = 0
    """Steps in which the rate rises linearly from 0."""
    decay_steps: int | None = None
    """Steps of the decay. None: for cosine and linear all after the warmup; for wsd the last tenth of the run."""
    final_lr: float = 0.1
    """Learning rate at the end of the decay, as a fraction of the peak."""
    b1: float = 0.9
    """Decay of the first moment (momentum)."""
    b2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Of kernels and embeddings; norms and biases are never decayed."""
    clip_norm: float | None = 1.0
    """Gradients with a larger global norm are scaled down to this norm. None: no clipping."""
    balance_rate: float = 0.0
    """Balances experts without a loss (Wang et al. 2024): after each step, the numbers that correct the scores of
    experts in a router like DeepSeek-V3's rise by this much for experts that got fewer of the batch's tokens than the
    mean of their layer, and fall for those that got more. DeepSeek-V3 took 0.001. The optimizer's own update, weight
    decay and clipping leave them alone; a moving average has them. 0: they stay as they are."""
    freeze: tuple[str, ...] = ()
    """Regular expressions: parameters whose whole path matches one of them keep their value."""
    ema: float | None = None
    """Decay of an exponential moving average of the parameters, which evaluation and export then use."""

    def __post_init__(self) -> None:
        check_rates(self, "b1", "b2", "ema")
        check_choices(self)
        check_sizes(self, "decay_steps")
        check_range(self, "warmup_steps", "weight_decay", "balance_rate", least=0)
        check_range(self, "peak_lr", "clip_norm", "eps", above=0)
        check_range(self, "final_lr", least=0, most=1)

    @property
    def least_steps(self) -> int:
        """The shortest run into which the warmup and the decay fit."""
        return max(1, self.warmup_steps + (self.decay_steps or 0))

    def check_steps(self, steps: int) -> None:
        """Raises ValueError if the warmup and the decay do not fit into this number of steps."""
        if self.least_steps <= steps:
            return
        left = steps - (self.decay_steps or 0)
        lower = "" if left >= 0 else f"optimizer.decay-steps to at most {steps} and "
        raise ValueError(
            f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} do not fit into {steps} steps of "
            f"training: lower {lower}optimizer.warmup-steps to at most {max(left, 0)}, or train for {self.least_steps} "
            "steps or more"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021): of the weights in `init_from`, only the change of some layers is trained."""

    rank: int | None = None
    """Rank of the change of each layer's kernel. None: no adapters, all parameters are trained."""
    alpha: float = 16.0
    """The change is scaled by alpha / rank."""
    targets: tuple[str, ...] = (r".*blocks/.*",)
    """Regular expressions: linear layers whose whole path matches one of them have an adapter, such as
    .*/(query|value). The default: all in the blocks."""
    dropout: float = 0.0
    """Rate at which inputs of the adapters are zeroed."""
    rank_stabilized: bool = False
    """The change is scaled by alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023)."""
    dora: bool = False
    """The norm of each column of a kernel is trained besides (DoRA, Liu et al. 2024)."""
    quantize: Literal["int8", "int4", "nf4"] | None = None
    """Hold the matrices that are not trained in few bits (QLoRA, Dettmers et al. 2023): int8, int4 or nf4, as
    `zoo.quantize` does. Blocks are then recomputed in the backward pass as with compute.remat=dots, or more. None: as
    they are."""
    whole: tuple[str, ...] | None = None
    """Regular expressions: parameters whose whole path matches one of them are trained themselves. None: those of the
    task's head that the first weights lack."""

    def __post_init__(self) -> None:
        check_sizes(self, "rank")
        check_rates(self, "dropout")
        check_range(self, "alpha", above=0)
        check_choices(self)
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if self.rank is None and given:
            raise ValueError(f"lora.{given[0]} is given and lora.rank is None: without a rank there are no adapters")
        if self.rank is not None and not self.targets:
            raise ValueError("lora.targets is empty: name linear layers, such as .*/(query|value)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Sizes of the mesh of devices; their product is the number of devices, and one may be -1, the rest."""

    data: int = -1
    """Copies of the model, each with its share of the rows."""
    fsdp: int = 1
    """Parts into which parameters and optimizer state are divided, besides the rows (fully sharded)."""
    tensor: int = 1
    """Parts into which heads, the MLP's width and the vocabulary are divided."""
    sequence: int = 1
    """Parts into which the length of the rows is divided."""
    expert: int = 1
    """Parts into which the experts of a mixture are divided, besides the rows."""

    def __post_init__(self) -> None:
        check_range(self, *vars(self))
        for axis, size in vars(self).items():
            if size < 1 and size != -1:
                raise ValueError(f"{axis} is {size}: it must be at least 1, or -1 for the rest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The loop."""

    steps: int | None = None
    """Updates of the parameters. None: as many as `epochs` take, or else 1000."""
    epochs: float | None = None
    """Passes over the training split, or parts of one, such as 2.5; instead of `steps`. The rows of each pass are
    counted before the first step: by the number of examples where each makes one row, otherwise by making them (each
    pass packs its documents in another order), once for all runs with the same rows. The last batch is filled up with
    rows of the next pass."""
    batch_size: int = 16
    """Rows in an update, over all devices and accumulation steps."""
    accumulation: int = 1
    """Parts of a batch that are computed one after the other, to save memory."""
    seed: int = 0
    """Seed of fresh parameters, of dropout and of the order of the data."""
    patience: int = 10
    """Consecutive updates that may be skipped for a loss or gradient that is not finite, before the run stops."""

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", 1000)
        check_sizes(self, "steps", "batch_size", "accumulation", "patience")
        check_range(self, "epochs", above=0)
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps={self.steps} and epochs={self.epochs} are both given: set one of them to None")
        check_range(self, "seed", least=0, below=2**32)
        if self.batch_size % self.accumulation:
            divisor = math.gcd(self.batch_size, self.accumulation)
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of accumulation={self.accumulation}: set "
                f"training.accumulation to a divisor of it, such as {divisor}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Loss and other measures on held-out documents during training."""

    every: int | None = 200
    """Steps between two evaluations; there is always one at the end. None: none at all, and no held-out documents are
    read."""
    batches: int | None = 8
    """Batches in an evaluation. None: the whole split."""
    best: str | None = None
    """A measure, such as loss or accuracy. The checkpoint with its best value is written at once, kept besides the
    latest ones, and is the step `best` for `load_run`, eval.py and the commands that load a run. None: only the latest
    are kept."""
    direction: Literal["lowest", "highest"] | None = None
    """Which value of that measure is best. None: as its name tells."""
    patience: int | None = None
    """The run ends after this number of evaluations in a row without a better value of `best`. None: it does not."""

    def __post_init__(self) -> None:
        check_sizes(self, "every", "batches", "patience")
        check_choices(self)
        if self.every is None and self.best is not None:
            raise ValueError(
                "every is None and best is given: without evaluation there is no best checkpoint. Set best "
                "(and direction and patience) to None too"
            )
        for name in ("direction", "patience"):
            if getattr(self, name) is not None and self.best is None:
                raise ValueError(f"{name} is given and best is None: name a measure, such as loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Training state on disk: parameters, optimizer, position in the data."""

    every: int = 200
    """Steps between two checkpoints; there is always one at the end."""
    keep: int = 2
    """Latest checkpoints that are kept; with `evaluation.best`, the best one besides."""
    keep_every: int | None = None
    """Checkpoints of multiples of this number of steps are always kept."""

    def __post_init__(self) -> None:
        check_sizes(self, "every", "keep", "keep_every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """Logs besides `metrics.jsonl` and the curve."""

    every: int = 10
    """Steps between two lines of the log."""
    tensorboard: bool = True
    """Event files for TensorBoard."""
    wandb: str | None = None
    """Project of Weights & Biases to log to (needs the extra `wandb`)."""

    def __post_init__(self) -> None:
        check_sizes(self, "every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run."""

    model: Any
    """The architecture: a family's `Config`."""
    objective: Any
    """The objective, one of `transformer_zoo.objectives`."""
    init_from: str | None = None
    """Weights to start from: a run's folder, or a published model by hub id, preset or folder. Architecture and
    tokenizer are then theirs, and so are a classifier's labels, if all labels of the data are among them; if they are
    for another task or other labels, the head is fresh."""
    directory: str = "runs/default"
    """The folder for everything that the run writes, also in a bucket: gs://BUCKET/FOLDER. A run that is found there
    goes on."""
    compute: Compute = Compute()
    """Precision, memory and speed."""
    data: Data = Data()
    vocabulary: Vocabulary = Vocabulary()
    optimizer: Optimizer = Optimizer()
    lora: Lora = Lora()
    mesh: Mesh = Mesh()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()

    def __post_init__(self) -> None:
        arguments.check(type(self), vars(self))
        for part in (self.model, self.objective):
            if dataclasses.is_dataclass(part):
                check_finite(part)
                check_choices(part)
        for name in ("directory", "init_from"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} is empty: give a name")
        if self.lora.rank is not None and self.init_from is None:
            raise ValueError("lora.rank is given and init_from is None: adapters change weights that are there")
        if self.training.steps is not None:
            self.optimizer.check_steps(self.training.steps)


def load_recipe(path: str | Path, beside: str | Path | None = None) -> Run:
    """The `config` that a recipe defines.

    Args:
        beside: in a recipe that builds on another, its own `__file__`; `path` then starts from that file's folder.

    Raises:
        FileNotFoundError: there is no such file; the message lists the recipes of its folder, or names `beside`.
        ValueError: the file defines no `config = Run(...)`.
    """
    path = Path(path) if beside is None else Path(beside).parent / path
    if not path.is_file():
        if beside is not None:
            raise FileNotFoundError(f"there is no recipe {path}, on which {beside} builds: copy it there too")
        folder = path.parent if path.parent.is_dir() else Path("configs")
        known = ", ".join(sorted(str(p) for p in folder.glob("*.py"))) or "none"
        raise FileNotFoundError(f"there is no recipe {path} (recipes in {folder}: {known})")
    try:
        config = runpy.run_path(str(path)).get("config")
    except TypeError as error:
        raise TypeError(f"{path}: {error}{_meant(str(error))}") from error
    if not isinstance(config, Run):
        raise ValueError(f"the recipe {path} must define `config = Run(...)`")
    return config


def _meant(error: str) -> str:
    """The setting that was probably meant, after Python's error about an unknown argument; empty for another error."""
    found = re.fullmatch(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'.*", error)
    if found is None:
        return ""
    part, name = found.groups()
    if name in hugging_face.TRAIN:
        return f". Did you mean {hugging_face.TRAIN[name].replace('-', '_')}?"
    known = dataclasses.fields(globals()[part]) if dataclasses.is_dataclass(globals().get(part)) else ()
    return f".{trees.nearest(name, [field.name for field in known])}"
