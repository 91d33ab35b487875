"""A small RoBERTa on the source code of the Python that runs it: hidden tokens alone, anew in every epoch.

Command:   python train.py configs/roberta_stdlib.py
Hardware:  2 CPU cores
Baseline:  who knows only how often tokens occur in training loses 6.80 nats a hidden token, and 6.26 who knows that
           of the held-out rows themselves (their entropy)
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import roberta
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import MaskedLM

config = Run(
    model=roberta.Config(
        vocab_size=8192,
        max_length=128,
        width=256,
        num_layers=4,
        num_heads=4,
        mlp_dim=1024,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
    objective=MaskedLM(),
    compute=Compute(unroll=4),
    directory="runs/roberta_stdlib",
    data=Data(source="python_stdlib", length=128, packing="concat"),
    vocabulary=Vocabulary(kind="roberta", size=8192),
    optimizer=Optimizer(peak_lr=1e-3, warmup_steps=50, b2=0.98, weight_decay=0.01),
    training=Training(steps=1500, batch_size=32),
    evaluation=Evaluation(every=250, batches=16),
    checkpoints=Checkpoints(every=250),
)
