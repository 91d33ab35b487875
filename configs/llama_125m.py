"""A model of LLaMA's architecture with 123 million parameters on C4, on 8 TPU v5e chips, each with a copy of it.

Command:   python train.py configs/llama_125m.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/llama_125m.py --aot v5e:2x4
Hardware:  a v5e slice of 8 chips (2x4), of whose 15.75 GiB each it needs 7.1; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord.

It reads 20 tokens for each parameter (Hoffmann et al. 2022): 2.6 billion, in batches of half a million.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Mesh, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import llama
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import CausalLM

config = Run(
    model=llama.Config(
        vocab_size=49152, max_length=2048, width=768, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64,
        mlp_dim=2048, norm_epsilon=1e-5, tied=True, eos_id=0,
    ),
    objective=CausalLM(logits_chunks=8),
    directory="runs/llama_125m",
    compute=Compute(dtype="bfloat16", remat="full"),
    data=Data(source="tfds:c4/en", length=2048, workers=8),
    vocabulary=Vocabulary(path="HuggingFaceTB/SmolLM2-135M"),
    optimizer=Optimizer(peak_lr=6e-4, warmup_steps=500),
    mesh=Mesh(data=-1),
    training=Training(steps=5000, batch_size=256),
    evaluation=Evaluation(every=500, batches=20),
    checkpoints=Checkpoints(every=500),
)  # fmt: skip
