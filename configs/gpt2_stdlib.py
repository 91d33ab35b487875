"""A small GPT-2 on the source code of the Python that runs it.

Command:   python train.py configs/gpt2_stdlib.py
Hardware:  2 CPU cores, about four minutes
Result:    held-out loss 5.97 at step 50, 5.54 at 100, 5.38 at 150, 5.20 at 200, 5.10 at 250: 1.90 bits a byte
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import gpt2
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import CausalLM

config = Run(
    model=gpt2.Config(
        vocab_size=8192, max_length=256, width=256, num_layers=4, num_heads=4, embed_dropout=0.0,
        attention_dropout=0.0, residual_dropout=0.0, eos_id=0,
    ),
    objective=CausalLM(),
    compute=Compute(unroll=4),
    directory="runs/gpt2_stdlib",
    data=Data(source="python_stdlib", length=256),
    vocabulary=Vocabulary(size=8192),
    optimizer=Optimizer(peak_lr=2e-3, warmup_steps=25),
    training=Training(steps=250, batch_size=16),
    evaluation=Evaluation(every=50),
    checkpoints=Checkpoints(every=50),
)  # fmt: skip
