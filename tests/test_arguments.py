"""Every public call refuses arguments of another type than its parameters', before anything else."""

import dataclasses
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import pytest

import transformer_zoo as zoo
from transformer_zoo import arguments, config
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.models import bert, gpt2


def call(
    ids: str | Sequence[str] | Sequence[Sequence[int]] | np.ndarray | jax.Array = "",
    size: int | None = None,
    rate: float = 0.0,
    flag: bool = False,
    texts: Iterable[str] = (),
    side: Literal["left", "right"] = "left",
    names: tuple[str, ...] = (),
    path: str | os.PathLike[str] = "",
    inputs: Iterable[Any] = (),
    m: arguments.Loaded | None = None,
    prompts: Mapping[str, str] | None = None,
    **others: str,
) -> None:
    arguments.check(call, locals())


class Tensor:
    """An array of another library, as torch's look."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.ndim, self.shape = x, x.ndim, x.shape
        self.dtype = f"torch.{x.dtype}"

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> "Tensor":
        return Tensor(self.x[i])

    def __iter__(self) -> Iterator["Tensor"]:
        return map(Tensor, self.x)


def test_what_is_of_a_type():
    call(ids="a")
    for ids in ([], ["a"], ("a",), np.array(["a"]), [[1], [2, np.int32(3)]], np.ones((2, 2)), [np.array([1])],
                [jax.numpy.arange(2)], jax.numpy.ones(2), Tensor(np.ones((2, 2), int))):  # fmt: skip
        call(ids=ids)
    for size in (None, 3, np.int64(3)):
        call(size=size)
    for rate in (1, 0.5, np.float32(0.5), np.int8(1)):
        call(rate=rate)
    call(flag=np.True_, texts=iter("ab"), side="top", names=("a",), path=os.curdir, inputs=[1, "a"], m=None)
    call(prompts={"a": "b"}, other=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": None}, "ids is None: expected a text or a list of texts or a list of lists of whole numbers or an"),
        ({"ids": ["a", [1]]}, "ids[1] is a list of 1: expected a text"),
        ({"ids": [[1], ["a"]]}, "ids[1][0] is 'a' (str): expected a whole number"),
        ({"ids": [1]}, "ids[0] is 1 (int): expected a text or a list of whole numbers"),
        ({"ids": [[[1]]]}, "ids[0][0] is a list of 1: expected a whole number"),
        ({"ids": [np.ones(2)]}, "ids[0] is an array of the type ndarray, float64[2]: expected a text or a list of"),
        ({"ids": Tensor(np.ones((2, 3)))}, "ids is an array of the type Tensor, torch.float64[2, 3]: expected a"),
        ({"ids": b"a"}, "ids is b'a' (bytes): expected"),
        ({"ids": {"a": 1}}, "ids is a dict of 1: expected"),
        ({"ids": (x for x in "ab")}, "ids is of the type generator: expected"),
        ({"size": "3"}, "size is '3' (str): expected a whole number or None"),
        ({"size": 2.5}, "size is 2.5 (float): expected a whole number or None"),
        ({"size": True}, "size is True: expected a whole number or None"),
        ({"rate": True}, "rate is True: expected a number"),
        ({"rate": "x" * 999}, "rate is 'xxxxxxxxxxxx...xxxxxxxxxxxxx' (str): expected a number"),
        ({"flag": 1}, "flag is 1 (int): expected True or False"),
        ({"texts": "a"}, "texts is 'a' (str): expected a list of texts"),
        ({"texts": ["a", None]}, "texts[1] is None: expected a text"),
        ({"texts": np.ones(3)}, "texts is an array of the type ndarray, float64[3]: expected a list of texts"),
        ({"texts": np.array(3.0)}, "texts is an array of the type ndarray, float64[]: expected a list of texts"),
        ({"side": 3}, "side is 3 (int): expected 'left' or 'right'"),
        ({"names": ["a"]}, "names is a list of 1: expected a tuple of texts"),
        ({"path": 3}, "path is 3 (int): expected a text or a path"),
        ({"inputs": b"a"}, "inputs is b'a' (bytes): expected a list"),
        ({"prompts": ["a"]}, "prompts is a list of 1: expected a dictionary or None"),
        ({"prompts": {"a": "b", "c": 3}}, "prompts['c'] is 3 (int): expected a text"),
        ({"m": "gpt2"}, "m is 'gpt2' (str): expected a model, as from_pretrained(name) returns it or None"),
        ({"size": "a", "rate": None}, "size is 'a' (str): expected a whole number or None; rate is None: expected a n"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",  # others would bear addresses
)  # fmt: skip
def test_what_is_not(given: dict[str, Any], message: str):
    with pytest.raises(TypeError, match=re.escape(message)):
        call(**given)


def test_settings():
    """Of runs, architectures and objectives: by the same check."""
    for settings, name in (
        (lambda: config.Training(steps="3"), "steps"), (lambda: config.Training(batch_size=True), "batch_size"),
        (lambda: config.Data(source=3), "source"), (lambda: config.Mesh(data="x"), "data"),
        (lambda: config.Optimizer(peak_lr="x"), "peak_lr"), (lambda: config.Run(model=0, objective=0, data=3), "data"),
        (lambda: gpt2.Config(num_layers=2.5), "num_layers"), (lambda: bert.Config(labels=["a", "b"]), "labels"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"^{name} is .*: expected a"):
            settings()


WRONG = (None, True, 2.5, "3", b"3", object(), [1, "a"], [[["a"]]], np.ones(3), {"a": 1}, iter("ab"), print)
CALLS = [getattr(zoo, name) for name in zoo.__all__[1:]]
CALLS = [call for call in CALLS if isinstance(call, types.FunctionType) and arguments._hints(call)]
CALLS += [zoo.Embedder.__call__, zoo.Embedder, zoo.Compute]
CALLS += [Tokenizer.encode, Tokenizer.encode_batch, Tokenizer.decode]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_public_calls(call: Any):
    """What is wrong is named, whatever else is wrong."""
    hints = arguments._hints(call)
    if dataclasses.is_dataclass(call):
        needed = [field.name for field in dataclasses.fields(call) if field.default is dataclasses.MISSING]
    else:
        code = call.__code__
        count = code.co_argcount - len(call.__defaults__ or ())
        needed = [
            *code.co_varnames[:count],
            *(set(hints) - set(call.__kwdefaults__ or ()) - set(code.co_varnames[:count])),
        ]
    for name, hint in hints.items():
        for value in WRONG:
            if (fault := arguments._fault(value, hint, name)) is not None:
                with pytest.raises(TypeError, match=re.escape(fault.text)):
                    call(**dict.fromkeys(needed) | {name: value})
