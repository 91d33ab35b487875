"""GPT-2 XL (1.6 billion parameters) on Wikipedia, fully sharded over 16 TPU v5e chips.

Command:   python train.py configs/gpt2_xl.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/gpt2_xl.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4). It has been compiled for that by the TPU compiler, not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord.
"""

import dataclasses

from transformer_zoo.config import Checkpoints, Data, Evaluation, Mesh, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import gpt2
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import CausalLM

config = Run(
    # Without dropout: a run that sees its data once does not overfit, and fused attention has none.
    model=dataclasses.replace(
        gpt2.PRESETS["gpt2-xl"][1], embed_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0
    ),
    objective=CausalLM(logits_chunks=4),
    directory="runs/gpt2_xl",
    compute=Compute(dtype="bfloat16", remat="full"),
    data=Data(
        source="tfds:wikipedia/20230601.en", train_split="train[1%:]", validation_split="train[:1%]", length=1024,
        workers=8,
    ),
    vocabulary=Vocabulary(path="openai-community/gpt2"),
    optimizer=Optimizer(peak_lr=2e-4, warmup_steps=2000),
    mesh=Mesh(data=1, fsdp=-1),
    training=Training(steps=100_000, batch_size=64),
    evaluation=Evaluation(every=2000, batches=20),
    checkpoints=Checkpoints(every=1000),
)  # fmt: skip
