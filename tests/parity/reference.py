"""The reference implementation: transformers on torch, in float64 and with attention in the open."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

import families
import numpy as np
import torch
import transformers
from families import Case

from transformer_zoo.checkpoints import config_map

Arrays = dict[str, np.ndarray]

torch.set_num_threads(1)  # more would wait for one another: the models are tiny
transformers.logging.set_verbosity_error()  # it warns of the special tokens of vocabularies as small as ours


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Where the reference asks for single precision whatever the model's, as for angles, it gets double."""
    float_is_double = mock.patch.object(torch.Tensor, "float", torch.Tensor.double)
    with mock.patch.multiple(torch, float=torch.float64, float32=torch.float64), float_is_double:
        yield


@in_double()
def build(case: Case, seed: int) -> Any:
    """Their model of a case, every parameter of which is random: biases are not zero, nor norms one."""
    settings = config_map.write(case.module, case.config, case.task)
    (name,) = settings.pop("architectures")
    config = transformers.AutoConfig.for_model(**settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, name)(config).double().eval()
    draw = np.random.default_rng(seed)
    scale = draw.uniform(0.1, 0.3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            # Numbers of half precision, so that they can be kept in little space.
            values = (is_scale + scale * draw.standard_normal(parameter.shape)).astype(np.float16)
            parameter.copy_(torch.tensor(values))
    return model


def tensors(model: Any) -> Arrays:
    """The state dict."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@in_double()
def told(
    task: str, model: Any, given: Arrays, position_offset: int = 0, prompt: int | None = None
) -> tuple[Arrays, np.ndarray, Arrays]:
    """What it says, all its hidden states and the gradients of all its parameters: as `families.told` has them of ours.

    Where something is padding it is given positions that count what is real, as a user of it has to; else nothing.
    """
    valid_BT, names = given.get("valid_BT"), {"tokens_BT": "input_ids", "segments_BT": "token_type_ids"}
    inputs = {names[name]: torch.as_tensor(x).long() for name, x in given.items() if name in names}
    positions = {}
    if valid_BT is not None:
        mask = inputs["attention_mask"] = torch.as_tensor(valid_BT).long()
        if "position_ids" in inspect.signature(model.forward).parameters:
            positions["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + position_offset
    elif task == "multiple-choice":
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])  # who judges by a mean asks for it
    inputs = families.as_asked(task, inputs) | positions  # which not every model divides by choices
    length = inputs["input_ids"].shape[-1]
    starts = [0] if prompt is None else [0, *range(prompt, length)]
    outputs: list[Any] = []
    for start, end in zip(starts, [*starts[1:], length]):
        part = {name: x[..., :end] if name == "attention_mask" else x[..., start:end] for name, x in inputs.items()}
        if prompt is not None:
            part |= {"use_cache": True, "past_key_values": outputs[-1].past_key_values if outputs else None}
        outputs.append(model(**part, output_hidden_states=True))
    words = answers(outputs)
    hidden = torch.stack([torch.cat(layer, dim=1) for layer in zip(*(out.hidden_states for out in outputs))])
    towards = families.directions(task, {name: tuple(x.shape) for name, x in words.items()}, valid_BT)
    model.zero_grad()
    sum((words[name] * torch.as_tensor(towards[name])).sum() for name in words).backward()
    named, tied = model.named_parameters(remove_duplicate=False), model.all_tied_weights_keys
    grads = {name: gradient(parameter) for name, parameter in named if name not in tied}
    return {name: x.detach().numpy() for name, x in words.items()}, hidden.detach().numpy(), grads


def answers(outputs: list[Any]) -> dict[str, torch.Tensor]:
    """Under our names what it says under many; the parts of a row that was read in parts, one after the other."""
    first = outputs[0]
    join = lambda name: torch.cat([out[name] for out in outputs], dim=1)
    if "start_logits" in first:
        return {"logits": torch.stack([first.start_logits, first.end_logits], dim=-1)}
    if "prediction_logits" in first:
        second = "seq_relationship_logits" if "seq_relationship_logits" in first else "sop_logits"
        return {"logits": first.prediction_logits, "next_sentence_B2": first[second]}
    if "logits" in first:
        return {"logits": join("logits")}
    pooled = {"pooled_BD": first.pooler_output} if "pooler_output" in first else {}
    return {"hidden_BTD": join("last_hidden_state")} | pooled


def gradient(parameter: Any) -> np.ndarray:
    return np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy().copy()
