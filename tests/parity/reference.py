"""The reference implementation: transformers on torch, in float64 and with attention in the open."""

from typing import Any

import numpy as np
import torch
import transformers
from families import Case

from transformer_zoo.checkpoints import config_map

Arrays = dict[str, np.ndarray]

transformers.logging.set_verbosity_error()  # it warns of the special tokens of vocabularies as small as ours


def build(case: Case, seed: int) -> Any:
    """Their model of a case, every parameter of which is random: biases are not zero, nor norms one."""
    settings = config_map.write(case.module, case.config, case.task)
    del settings["architectures"]
    config = transformers.AutoConfig.for_model(**settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, case.module.TASKS[case.task])(config).double().eval()
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


def told(
    model: Any, direction: np.ndarray, tokens_BT: np.ndarray, valid_BT: np.ndarray | None, prompt: int | None = None
) -> tuple[np.ndarray, np.ndarray, Arrays]:
    """What it says, all its hidden states and the gradients of all its parameters: as `families.told` has them of ours.

    With `valid_BT` it is given positions that count what is real, as a user of it has to; without, nothing.
    """
    given = {"input_ids": torch.as_tensor(tokens_BT).long()}
    if valid_BT is not None:
        given["attention_mask"] = torch.as_tensor(valid_BT).long()
        given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    length = tokens_BT.shape[1]
    starts = [0] if prompt is None else [0, *range(prompt, length)]
    outputs: list[Any] = []
    for start, end in zip(starts, [*starts[1:], length]):
        part = {name: x[:, :end] if name == "attention_mask" else x[:, start:end] for name, x in given.items()}
        if prompt is not None:
            part |= {"use_cache": True, "past_key_values": outputs[-1].past_key_values if outputs else None}
        outputs.append(model(**part, output_hidden_states=True))
    said = torch.cat([out.logits if "logits" in out else out.last_hidden_state for out in outputs], dim=1)
    hidden = torch.stack([torch.cat(layer, dim=1) for layer in zip(*(out.hidden_states for out in outputs))])
    model.zero_grad()
    (said * torch.as_tensor(direction)).sum().backward()
    return said.detach().numpy(), hidden.detach().numpy(), {n: gradient(p) for n, p in model.named_parameters()}


def gradient(parameter: Any) -> np.ndarray:
    return np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy().copy()
