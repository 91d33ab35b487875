"""A GPT-2 of 1.3 billion parameters on Wikipedia, fully sharded over 16 TPU v5e chips.

Command:   python train.py configs/gpt2_1b3.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/gpt2_1b3.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4). It has been compiled for that by the TPU compiler, not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord.
"""

from dataclasses import replace

from transformer_zoo.config import Training, load_recipe
from transformer_zoo.models import gpt2

base = load_recipe("gpt2_xl.py", beside=__file__)

config = replace(
    base,
    model=gpt2.Config(
        vocab_size=50304, max_length=2048, width=2048, num_layers=24, num_heads=16, mlp_dim=8192, embed_dropout=0.0,
        attention_dropout=0.0, residual_dropout=0.0,
    ),
    directory="runs/gpt2_1b3",
    data=replace(base.data, length=2048),
    training=Training(steps=100_000, batch_size=32),
)  # fmt: skip
