"""The small BERT of bert_stdlib.py into half its layers, by DistilBERT's three losses.

Command:   python train.py configs/bert_stdlib.py
           python train.py configs/distil_stdlib.py
Hardware:  2 CPU cores
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import bert
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import Distillation

config = Run(
    model=bert.Config(
        vocab_size=8192,
        max_length=128,
        width=256,
        num_layers=2,
        num_heads=4,
        mlp_dim=1024,
        init_std=0.05,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
    objective=Distillation(teacher="runs/bert_stdlib"),
    compute=Compute(unroll=4),
    directory="runs/distil_stdlib",
    data=Data(source="python_stdlib", length=128),
    vocabulary=Vocabulary(path="runs/bert_stdlib/tokenizer"),
    optimizer=Optimizer(name="muon", peak_lr=2e-3, warmup_steps=50, weight_decay=0.01),
    training=Training(steps=500, batch_size=32),
    evaluation=Evaluation(every=100, batches=16),
    checkpoints=Checkpoints(every=100),
)
