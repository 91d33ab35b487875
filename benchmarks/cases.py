"""The cases of `accelerator.py`, in order of importance, and the settings to try for each."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings of our program."""

    batch: int
    """Rows."""
    attention: str = "auto"
    """As `Compute.attention`."""
    remat: str = "none"
    """As `Compute.remat`."""
    unroll: int = 1
    """As `Compute.unroll`."""
    logits_chunks: int = 1
    """Parts of a row whose logits are computed at a time."""
    apart: bool = False
    """Decoding: each layer's parameters and cache are arrays of their own, rather than slices of stacked ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerSetting:
    """Settings of the reference library's program."""

    batch: int
    """Rows."""
    compiled: Literal["no", "blocks", "whole"] = "no"
    """What torch.compile compiles: nothing, each layer's block, or the model."""
    sparse: bool = False
    """ModernBERT's sparse_prediction: logits only of masked tokens."""
    cache: Literal["dynamic", "static"] = "dynamic"
    """Decoding; with a static cache `generate` compiles the model itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    kind: Literal["attention", "train", "encode", "decode"]
    model: str = ""
    """A preset, with random weights."""
    length: int
    """Tokens in a row, a source or a prompt."""
    target: int = 0
    """Tokens in a target."""
    masked: bool = False
    """Masked language models: logits only of masked tokens."""
    new: int = 0
    """Tokens to generate."""
    weight: float = 1.0
    """Share of the remaining time, relative to the weights of the cases that follow."""
    alone: bool = False
    """It needs the memory of the whole device: the peer starts after our process has ended."""
    tiny: bool = False
    """A model of a few thousand parameters, to test the script."""
    ours: tuple[Setting, ...] = ()
    """Settings to try, the most promising or cheapest first."""
    theirs: tuple[PeerSetting, ...] = ()


def described(setting: Setting | PeerSetting) -> str:
    """The settings that differ from the defaults."""
    words = [
        f"{field.name} {value}"
        for field in dataclasses.fields(setting)
        if (value := getattr(setting, field.name)) != field.default
    ]
    return ", ".join(words)


def _both(*batches: int, **kwargs: bool) -> tuple[PeerSetting, ...]:
    """Both ways to compile: blocks compile sooner, the whole model may be faster."""
    return tuple(PeerSetting(batch=batch, compiled=part, **kwargs) for part in ("blocks", "whole") for batch in batches)


def _masked(name: str, model: str, length: int, batch: int, layers: int = 12, **kwargs: bool) -> Case:
    ours = (
        Setting(batch=batch, unroll=layers), Setting(batch=batch), Setting(batch=2 * batch),
        Setting(batch=batch, attention="xla"), Setting(batch=2 * batch, remat="dots"),
    )  # fmt: skip
    theirs = (*_both(batch), PeerSetting(batch=2 * batch, compiled="blocks"))
    return Case(name=name, kind="train", model=model, length=length, ours=ours, theirs=theirs, **kwargs)


def _decode(batch: int) -> Case:
    ours = (Setting(batch=batch, apart=True), Setting(batch=batch))
    theirs = (PeerSetting(batch=batch), PeerSetting(batch=batch, cache="static"))
    return Case(
        name=f"decode GPT-2 XL, batch {batch}", kind="decode", model="gpt2-xl", length=32, new=224, ours=ours,
        theirs=theirs,
    )  # fmt: skip


_BERT, _MODERN = "bert-base-uncased", "modernbert-base"
_SPARSE = PeerSetting(batch=64, compiled="blocks", sparse=True)
CASES: tuple[Case, ...] = (
    Case(name="attention", kind="attention", length=1024),
    _masked("train BERT-base 128, all tokens", _BERT, 128, 256),
    _masked("train BERT-base 128, masked tokens", _BERT, 128, 256, masked=True),
    Case(
        name="train GPT-2 XL 1024", kind="train", model="gpt2-xl", length=1024, weight=2.0, alone=True,
        ours=(
            Setting(batch=8, remat="dots", logits_chunks=4), Setting(batch=16, remat="full", logits_chunks=8),
            Setting(batch=4, logits_chunks=4), Setting(batch=16, remat="dots", logits_chunks=8),
        ),
        theirs=(PeerSetting(batch=4, compiled="blocks"), PeerSetting(batch=8, compiled="blocks")),
    ),
    Case(
        name="train T5-base 512+128", kind="train", model="t5-base", length=512, target=128,
        ours=(
            Setting(batch=32), Setting(batch=32, unroll=12), Setting(batch=64),
            Setting(batch=64, remat="dots"),
        ),
        theirs=(*_both(32), PeerSetting(batch=64, compiled="blocks")),
    ),
    dataclasses.replace(
        _masked("train ModernBERT-base 512, masked tokens", _MODERN, 512, 64, layers=22, masked=True),
        theirs=(_SPARSE, *_both(64)),
    ),
    _decode(1),
    Case(
        name="train GPT-2 124M 1024", kind="train", model="gpt2", length=1024,
        ours=(
            Setting(batch=16), Setting(batch=32, logits_chunks=4), Setting(batch=16, unroll=12),
            Setting(batch=32, logits_chunks=8),
            Setting(batch=16, attention="xla", logits_chunks=4),
        ),
        theirs=_both(16, 32),
    ),
    _masked("train BERT-base 512, all tokens", _BERT, 512, 64),
    _masked("train BERT-base 512, masked tokens", _BERT, 512, 64, masked=True),
    _decode(64),
    Case(
        name="encode BERT-base 128", kind="encode", model=_BERT, length=128, weight=0.6,
        ours=(
            Setting(batch=256), Setting(batch=256, unroll=12), Setting(batch=1024), Setting(batch=256, attention="xla"),
        ),
        theirs=_both(256, 1024),
    ),
    _decode(8),
    Case(
        name="train T5-large 512+128", kind="train", model="t5-large", length=512, target=128, alone=True,
        ours=(Setting(batch=16), Setting(batch=32, remat="dots"), Setting(batch=16, remat="dots")),
        theirs=(PeerSetting(batch=16, compiled="blocks"), PeerSetting(batch=32, compiled="blocks")),
    ),
)  # fmt: skip


def small(case: Case) -> Case:
    """The case with a tiny model and few rows: batches are divided by the smallest, and each setting is tried once."""
    least = min((setting.batch for setting in (*case.ours, *case.theirs)), default=1)
    fewer = lambda settings: tuple(
        dict.fromkeys(dataclasses.replace(setting, batch=setting.batch // least) for setting in settings)
    )
    sizes = {"length": min(case.length, 32), "target": min(case.target, 8), "new": min(case.new, 4)}
    return dataclasses.replace(case, tiny=True, ours=fewer(case.ours), theirs=fewer(case.theirs), **sizes)
