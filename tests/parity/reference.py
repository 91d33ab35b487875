"""The reference implementation: transformers on torch, in float64 and with eager attention."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import families
import numpy as np
import safetensors.torch  # noqa: F401  (before `in_double`: its table of dtypes has torch.float32)
import torch
import transformers
from families import Case
from transformers.core_model_loading import revert_weight_conversion

from transformer_zoo.checkpoints import config_map

Arrays = dict[str, np.ndarray]

torch.set_num_threads(1)  # more would wait for one another: the models are tiny
transformers.logging.set_verbosity_error()  # it warns of the special tokens of vocabularies as small as ours


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Double precision where the reference hard-codes single precision, as for angles."""
    float_is_double, default = mock.patch.object(torch.Tensor, "float", torch.Tensor.double), torch.get_default_dtype()
    with mock.patch.multiple(torch, float=torch.float64, float32=torch.float64), float_is_double:
        torch.set_default_dtype(torch.float64)  # that of a quotient of whole numbers
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def pad_inside(config: Any) -> None:
    """A padding outside of a vocabulary as small as ours, as some families have it by default, becomes none."""
    if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:
        config.pad_token_id = None


@in_double()
def build(case: Case, seed: int) -> Any:
    """Their model of a case. All parameters are random, biases and norms too."""
    settings = config_map.write(case.module, case.config, case.task)
    (name,) = settings.pop("architectures")
    config = transformers.AutoConfig.for_model(**settings)
    config._attn_implementation = config._experts_implementation = "eager"  # products of groups know no float64
    if getattr(config, "alibi", False):
        config._attn_implementation = "sdpa"  # its eager attention adds the biases twice
    if {*(getattr(config, "layer_types", None) or ())} == {"linear_attention"}:
        config.use_cache = False  # its cache has no length without a layer with attention
    pad_inside(config)
    with truncating(config):
        model = getattr(transformers, name)(config).double().eval()
    if not settings.get("tie_word_embeddings", True) and config.tie_word_embeddings:
        untie(model)
    settle(model)
    draw = np.random.default_rng(seed)
    scale = draw.uniform(0.1, 0.3)
    with torch.no_grad():
        for name, weight in weights(model):
            is_scale = weight.ndim == 1 and name.endswith("weight")
            # Numbers in float16, so that files are small.
            values = (is_scale + scale * draw.standard_normal(weight.shape)).astype(np.float16)
            weight.copy_(torch.tensor(values))
    return model


@contextlib.contextmanager
def truncating(config: Any) -> Iterator[None]:
    """Lets yarn's `truncate` be found where layers have positions by their kind: it is looked up beside the kinds."""
    kinds = getattr(config, "rope_parameters", None) or {}
    own = {"truncate": found} if (found := (kinds.get("full_attention") or {}).get("truncate")) is not None else {}
    with mock.patch.dict(kinds, own):
        yield


def weights(model: Any) -> list[tuple[str, torch.Tensor]]:
    """The trained parameters, and the floating-point buffers that are saved with them."""
    named, tied = model.named_parameters(remove_duplicate=False), model.all_tied_weights_keys
    learned = [(name, parameter) for name, parameter in named if name not in tied and parameter.requires_grad]
    saved = [(name, buffer) for name, buffer in model.named_buffers() if name in model.state_dict()]
    return learned + [(name, buffer) for name, buffer in saved if buffer.is_floating_point()]


def settle(model: Any) -> None:
    """Computes fixed numbers, such as sinusoids, again in the model's precision; and gives the padding token a gradient
    like any other token's."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
        if hasattr(module, "pos_embd_dim"):
            inv_freq = 10000.0 ** -(torch.arange(0, module.pos_embd_dim, 2, dtype=torch.float64) / module.pos_embd_dim)
            angles = torch.arange(module.max_positions, dtype=torch.float64)[:, None] * inv_freq
            module.embed_positions = torch.cat([angles.sin(), angles.cos()], dim=1)
        if hasattr(module, "create_weight"):
            with torch.no_grad(), mock.patch.object(torch, "FloatTensor", torch.DoubleTensor):
                module.weight.copy_(module.create_weight())


def untie(model: Any) -> None:
    """Gives an output layer its own weights, where the reference calls every model tied and goes by its tensors."""
    if (head := model.get_output_embeddings()) is not None:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.all_tied_weights_keys = {
            name: other for name, other in model.all_tied_weights_keys.items()
            if model.get_parameter(name) is not head.weight
        }  # fmt: skip


def tensors(model: Any) -> Arrays:
    """The state dict, as files hold it."""
    return in_files(model, model.state_dict())


def in_files(model: Any, named: dict[str, torch.Tensor]) -> Arrays:
    """Parameters, or what there is of each, by their names in files: these hold apart what a model may stack."""
    apart = revert_weight_conversion(model, named)
    named = named if apart.keys() == named.keys() else apart  # which has another order
    return {name: x.detach().numpy() for name, x in named.items()}


NAMES = {
    "tokens_BT": "input_ids", "valid_BT": "attention_mask", "segments_BT": "token_type_ids",
    "source_BS": "input_ids", "valid_BS": "attention_mask",
    "target_BT": "decoder_input_ids", "target_valid_BT": "decoder_attention_mask",
}  # fmt: skip


@in_double()
def evaluate(
    task: str, model: Any, given: Arrays, position_offset: int = 0, prompt: int | None = None
) -> tuple[Arrays, Arrays, Arrays]:
    """Outputs, all hidden states and the gradients of all parameters, as from `families.evaluate` for our models.

    With padding, the model gets positions that count real tokens, as its users have to pass them; without, none. A
    decoder for classification gets the inputs that it would make itself without padding. An encoder scores a row by its
    first slot, so that it gets the padding behind the tokens where it does.
    """
    inputs, back = arguments(task, model, given, position_offset), lambda x: x
    is_encoder = "decoder_input_ids" not in inputs
    by_slot = is_encoder and (task in families.PER_ROW or getattr(model, "pooler", None) is not None)
    if (by_slot or hasattr(model.config, "global_block_size")) and "attention_mask" in inputs:
        inputs, back = with_padding_behind(inputs)
    with scaled(model), counting(model, inputs):
        outputs = [model(**inputs, output_hidden_states=True)] if prompt is None else piecewise(model, inputs, prompt)
    results = named_outputs(outputs)
    if is_encoder:
        results = {name: back(x) if families.is_per_token(task, name) else x for name, x in results.items()}
    grads = {}
    if prompt is None:
        shapes = {name: tuple(x.shape) for name, x in results.items()}
        towards = families.directions(task, shapes, families.mask_of(given))
        model.zero_grad()
        sum((results[name] * torch.as_tensor(towards[name])).sum() for name in results).backward()
        grads = in_files(model, {name: gradient(weight) for name, weight in weights(model)})
    hidden = {ids: x.detach().numpy() for ids, x in states(outputs, given, back).items()}
    return {name: x.detach().numpy() for name, x in results.items()}, hidden, grads


def arguments(task: str, model: Any, given: Arrays, position_offset: int = 0) -> dict[str, torch.Tensor]:
    """The arguments of `model.forward` for our inputs."""
    signature = inspect.signature(model.forward).parameters
    inputs = {NAMES[name]: torch.as_tensor(x).long() for name, x in given.items()}
    positions = {}
    if hasattr(model, "score"):  # it scores the last token of a row whose id is not that of padding
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        last = real.shape[1] - 1 - real.flip(1).int().argmax(dim=1)
        ends = inputs["input_ids"][torch.arange(len(last)), last].tolist()
        model.config.pad_token_id = next(token for token in range(len(last) + 1) if token not in ends)
        inputs["input_ids"] = inputs["input_ids"].where(real, model.config.pad_token_id)
    if "attention_mask" in inputs:
        if "position_ids" in signature:
            positions["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0) + position_offset
    elif task == "multiple-choice":
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])  # models that average over tokens require it
    if "decoder_input_ids" in signature and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = shifted(inputs, model.config.decoder_start_token_id)
        if "attention_mask" in inputs:
            inputs["decoder_attention_mask"] = inputs["attention_mask"]
    return families.for_task(task, inputs) | positions  # not every model divides positions by choices


@in_double()
def dropouts(task: str, model: Any, given: Arrays) -> list[tuple[float, int]]:
    """(rate, width) of each dropout in a training forward pass, sorted; the width is the last dimension's."""
    found = []

    def record(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if training and p:
            found.append((round(p, 6), x.shape[-1]))
        return x

    inputs = arguments(task, model, given)
    with mock.patch.object(torch.nn.functional, "dropout", record):
        model.train()(**inputs)
    model.eval()
    return sorted(found)


@contextlib.contextmanager
def scaled(model: Any) -> Iterator[None]:
    """Scales umT5's logits if its configuration is set so. transformers 5 scales them if the model is tied, and calls
    every umT5 tied, although the published ones are not."""
    scale = getattr(model.config, "scale_decoder_outputs", model.config.tie_word_embeddings)
    with mock.patch.object(model.config, "tie_word_embeddings", scale):
        yield


@contextlib.contextmanager
def counting(model: Any, inputs: dict[str, torch.Tensor]) -> Iterator[None]:
    """Makes position embeddings count real tokens, if they count all slots and take no positions."""
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            mask = inputs.get("decoder_attention_mask" if "decoder" in name else "attention_mask")
            if name.endswith("embed_positions") and mask is not None:
                positions = (mask.cumsum(1) - 1).clamp(min=0) + getattr(module, "offset", 0)

                def embed(module: Any, args: Any, output: Any, positions: torch.Tensor = positions) -> torch.Tensor:
                    start = args[1] if len(args) > 1 else 0  # what lies in the cache
                    positions = positions[:, start : start + output.shape[-2]]
                    return torch.nn.functional.embedding(positions, module.weight)

                stack.callback(module.register_forward_hook(embed).remove)
        yield


def piecewise(model: Any, inputs: dict[str, torch.Tensor], prompt: int) -> list[Any]:
    """The outputs for `prompt` tokens at once, and then for the others one by one, with its cache."""
    side = "decoder_" if "decoder_input_ids" in inputs else ""
    read, seen = f"{side}input_ids", f"{side}attention_mask"  # the mask has to begin at the first token
    if getattr(model.config, "sliding_window", None) == 1:  # its cache then keeps all tokens in place of none
        return [model(**inputs, output_hidden_states=True)]
    if not getattr(model.config, "use_cache", True):
        return [model(**inputs, output_hidden_states=True)]
    starts, outputs = [0, *range(prompt, inputs[read].shape[1])], []
    for start, end in zip(starts, [*starts[1:], inputs[read].shape[1]]):
        part = dict(inputs)
        for name in part.keys() & {read, seen, "position_ids"}:
            part[name] = part[name][:, 0 if name == seen else start : end]
        if outputs:
            part["past_key_values"] = outputs[-1].past_key_values
            if side:
                part["encoder_outputs"] = (outputs[0].encoder_last_hidden_state,)
        outputs.append(model(**part, use_cache=True, output_hidden_states=True))
        if "past_key_values" not in outputs[0]:  # the reference has no cache, and reads the row at once
            return [model(**inputs, output_hidden_states=True)]
    return outputs


def shifted(inputs: dict[str, torch.Tensor], start: int | None) -> torch.Tensor:
    """The source shifted right by one, with the start token in place of the first real token. None: with the last real
    token, as in mBART, whose texts end with their language."""
    ids = inputs["input_ids"].roll(1, dims=1)
    mask, rows = inputs.get("attention_mask", torch.ones_like(ids)), torch.arange(len(ids))
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    ids[rows, mask.argmax(dim=1)] = inputs["input_ids"][rows, last] if start is None else start
    return ids


def with_padding_behind(
    inputs: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """Rows with their padding moved to the end, for a model in which the slot of a token matters; and a function that
    moves what is of tokens, [..., B, T, D], back."""
    mask = inputs["attention_mask"]
    slots = (torch.arange(mask.shape[-1]) + mask.argmax(dim=-1, keepdim=True)) % mask.shape[-1]
    own = {name: x for name, x in inputs.items() if not name.startswith("decoder_")}
    moved = {name: x.gather(-1, slots.reshape(x.shape)) for name, x in own.items()}
    order = slots.argsort(dim=-1).reshape(-1, mask.shape[-1], 1)
    return inputs | moved, lambda x: x.gather(-2, order.expand(x.shape))


def states(outputs: list[Any], given: Arrays, back: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """All hidden states [L + 1, B, T, D], by the names of their ids."""
    join = lambda name: stacked([torch.cat(layer, dim=1) for layer in zip(*(out[name] for out in outputs))])
    if "decoder_hidden_states" not in outputs[0]:
        return {next(ids for ids in families.MASKS if ids in given): back(join("hidden_states"))}
    encoder = back(torch.stack(outputs[0].encoder_hidden_states))
    return {"source_BS": encoder, "target_BT": join("decoder_hidden_states")}


def stacked(states: list[torch.Tensor]) -> torch.Tensor:
    """Hidden states of all layers in one array, as `families.of_one_width` makes their widths equal."""
    width = max(x.shape[-1] for x in states)
    return torch.stack([torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in states])


def named_outputs(outputs: list[Any]) -> dict[str, torch.Tensor]:
    """The outputs under our names. Those of the parts of a row are concatenated."""
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


def gradient(parameter: Any) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
