"""Hugging Face's names for arguments and classes that have another name here, for error messages. Its names for the
fields of a Config are in the families' own tables: `registry.fields_called`."""

from collections.abc import Iterable

from transformer_zoo.trees import nearest

CALL = {
    "input_ids": "tokens_BT (of an encoder-decoder source_BS), the first argument",
    "attention_mask": "valid_BT (of an encoder-decoder valid_BS)",
    "token_type_ids": "segments_BT",
    "position_ids": "positions_BT",
    "decoder_input_ids": "target_BT",
    "decoder_attention_mask": "target_valid_BT",
    "past_key_values": "cache",
    "output_attentions": 'mutable=["intermediates"]',
    "output_hidden_states": 'mutable=["intermediates"]',
}
"""Arguments of a model's call."""

LOAD = {
    "num_labels": "labels",
    "id2label": "labels",
    "label2id": "labels",
    "torch_dtype": "dtype and param_dtype",
    "attn_implementation": "compute=zoo.Compute(attention=...)",
    "device_map": "mesh",
    "quantization_config": "quantize",
    "load_in_8bit": 'quantize="int8"',
    "load_in_4bit": 'quantize="nf4"',
}
"""Arguments of `from_pretrained`."""

EMBED = {"prompt_name": "prompt"}
"""Arguments of an embedder's call."""

PREDICT = {
    "aggregation_strategy": "aggregation",
    "ignore_labels": "ignored",
    "stride": "overlap",
    "doc_stride": "overlap",
    "max_seq_len": "row_length",
    "max_answer_len": "answer_length",
    "handle_impossible_answer": "no_answer",
}
"""Settings of pipelines."""

TRAIN = {
    "learning_rate": "optimizer.peak-lr", "lr": "optimizer.peak-lr", "max_lr": "optimizer.peak-lr",
    "min_lr": "optimizer.final-lr", "lr_scheduler_type": "optimizer.schedule", "lr_scheduler": "optimizer.schedule",
    "warmup_ratio": "optimizer.warmup-steps", "warmup": "optimizer.warmup-steps",
    "optim": "optimizer.name", "optimizer": "optimizer.name", "wd": "optimizer.weight-decay",
    "adam_beta1": "optimizer.b1", "beta1": "optimizer.b1", "adam_beta2": "optimizer.b2", "beta2": "optimizer.b2",
    "adam_epsilon": "optimizer.eps", "epsilon": "optimizer.eps",
    "max_grad_norm": "optimizer.clip-norm", "grad_clip": "optimizer.clip-norm",
    "gradient_clip_val": "optimizer.clip-norm",
    "per_device_train_batch_size": "training.batch-size", "train_batch_size": "training.batch-size",
    "per_device_eval_batch_size": "training.batch-size", "eval_batch_size": "training.batch-size",
    "num_train_epochs": "training.epochs", "num_epochs": "training.epochs", "max_epochs": "training.epochs",
    "max_steps": "training.steps", "num_steps": "training.steps", "num_train_steps": "training.steps",
    "train_steps": "training.steps", "max_iters": "training.steps",
    "gradient_accumulation_steps": "training.accumulation", "accumulate_grad_batches": "training.accumulation",
    "data_seed": "training.seed", "random_seed": "training.seed",
    "fp16": "compute.dtype bfloat16", "bf16": "compute.dtype bfloat16", "precision": "compute.dtype",
    "mixed_precision": "compute.dtype", "torch_dtype": "compute.dtype", "attn_implementation": "compute.attention",
    "gradient_checkpointing": "compute.remat full",
    "lora_r": "lora.rank", "lora_rank": "lora.rank", "lora_alpha": "lora.alpha", "lora_dropout": "lora.dropout",
    "target_modules": "lora.targets", "lora_target_modules": "lora.targets", "modules_to_save": "lora.whole",
    "load_in_8bit": "lora.quantize int8", "load_in_4bit": "lora.quantize nf4",
    "bnb_4bit_quant_type": "lora.quantize", "use_rslora": "lora.rank-stabilized", "use_dora": "lora.dora",
    "output_dir": "directory", "out_dir": "directory", "logging_dir": "directory", "run_name": "directory",
    "model_name_or_path": "init-from", "model_name": "init-from", "pretrained_model_name_or_path": "init-from",
    "tokenizer_name": "vocabulary.path", "tokenizer": "vocabulary.path",
    "chat_template_path": "vocabulary.chat-template",
    "max_seq_length": "data.length", "max_length": "data.length", "seq_length": "data.length",
    "block_size": "data.length", "context_length": "data.length", "max_source_length": "data.length",
    "max_target_length": "objective.target-length", "mlm_probability": "objective.rate",
    "label_smoothing_factor": "objective.label-smoothing",
    "validation_file": "data.validation-source", "eval_file": "data.validation-source",
    "validation_split_percentage": "data.validation-share", "val_split": "data.validation-share",
    "dataset_name": "data.source", "train_file": "data.source", "dataset": "data.source",
    "dataloader_num_workers": "data.workers", "num_workers": "data.workers",
    "eval_steps": "evaluation.every", "eval_strategy": "evaluation.every", "evaluation_strategy": "evaluation.every",
    "eval_interval": "evaluation.every", "eval_iters": "evaluation.batches", "max_eval_samples": "evaluation.batches",
    "metric_for_best_model": "evaluation.best", "load_best_model_at_end": "evaluation.best",
    "greater_is_better": "evaluation.direction", "early_stopping_patience": "evaluation.patience",
    "early_stopping": "evaluation.patience",
    "save_steps": "checkpoints.every", "save_strategy": "checkpoints.every", "save_total_limit": "checkpoints.keep",
    "logging_steps": "logging.every", "log_interval": "logging.every", "report_to": "logging.wandb",
    "wandb_project": "logging.wandb",
}  # fmt: skip
"""Settings of training, also of other libraries, and the options of train.py, with a value where it is fixed."""

CLASSES = {
    "AutoModel": 'from_pretrained(name, task="...")',
    "AutoConfig": "from_pretrained(name).config",
    "AutoTokenizer": "load_tokenizer(name)",
    "SentenceTransformer": "load_embedder(name)",
    "pipeline": "predict(m, inputs)",
    "Trainer": "train(run)",
}
"""Classes, and the function to call instead. The names are prefixes: `AutoModelForCausalLM` is an `AutoModel`."""


def hint(theirs: str, ours: str | None, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: our name for it, if there is one, or the nearest known one."""
    return f" Hugging Face's {theirs} is {ours} here." if ours else nearest(theirs, known)


def refuse(function: str, arguments: Iterable[str], table: dict[str, str], known: Iterable[str] = ()) -> None:
    """Raises TypeError for the first of these keyword arguments, which the function does not have."""
    for name in arguments:
        raise TypeError(
            f"{function}() got an unexpected keyword argument {name!r}.{hint(name, table.get(name), known)}"
        )
