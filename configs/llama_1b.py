"""A model of LLaMA's architecture with 1.1 billion parameters on C4, trained as configs/llama_125m.py is, fully
sharded over 16 TPU v5e chips.

Command:   python train.py configs/llama_1b.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/llama_1b.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4), of whose 15.75 GiB each it needs 10.7; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord.
"""

from dataclasses import replace

from transformer_zoo.config import Mesh, Optimizer, Training, load_recipe

base = load_recipe("llama_125m.py", beside=__file__)

config = replace(
    base,
    model=replace(base.model, width=2048, num_layers=16, num_heads=32, num_kv_heads=8, mlp_dim=8192),
    directory="runs/llama_1b",
    optimizer=Optimizer(peak_lr=3e-4, warmup_steps=1000),
    mesh=Mesh(data=1, fsdp=-1),
    training=Training(steps=20_000, batch_size=512, accumulation=2),
)
