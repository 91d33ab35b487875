"""Llama 2's architecture with 6.9 billion parameters on C4, trained as configs/llama_125m.py is, on 64 TPU v5p chips:
four copies, each fully sharded over 16.

Command:   python train.py configs/llama_7b.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/llama_7b.py --aot v5p:4x4x4
Hardware:  a v5p slice of 64 chips (4x4x4), of whose 95.73 GiB each it needs 45.4; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord.

Batches of four million tokens and the learning rate are those of LLaMA (Touvron et al. 2023, table 2).
"""

from dataclasses import replace

from transformer_zoo.config import Mesh, Optimizer, Training, load_recipe
from transformer_zoo.models import llama

base = load_recipe("llama_125m.py", beside=__file__)

config = replace(
    base,
    model=replace(llama.PRESETS["llama-2-7b"][1], vocab_size=49152, max_length=2048, eos_id=0),
    directory="runs/llama_7b",
    optimizer=Optimizer(peak_lr=3e-4, warmup_steps=2000),
    mesh=Mesh(data=4, fsdp=-1),
    training=Training(steps=33_000, batch_size=2048),
)
