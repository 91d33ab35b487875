"""Which of 20 packages of the standard library does a function come from? From scratch, or after pretraining.

Command:   python train.py configs/bert_functions.py
           python train.py configs/bert_functions.py --init-from runs/bert_stdlib --directory runs/bert_functions_tuned
Hardware:  2 CPU cores, about three minutes
Baseline:  the largest package is 16.3 % of the held-out functions
Result:    accuracy on held-out functions, from scratch, 0.300 at step 100, 0.493 at 200, 0.562 at 300, macro F1 0.327;
           after configs/bert_stdlib.py 0.603, 0.644, 0.674, macro F1 0.458

The architecture is that of configs/bert_stdlib.py. A fifth of each package's functions is held out, in whole files.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import bert
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import SequenceClassification

config = Run(
    model=bert.Config(
        vocab_size=8192,
        max_length=128,
        width=256,
        num_layers=4,
        num_heads=4,
        mlp_dim=1024,
        init_std=0.05,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
    objective=SequenceClassification(),
    compute=Compute(unroll=4),
    directory="runs/bert_functions",
    data=Data(source="stdlib_functions", length=128),
    vocabulary=Vocabulary(kind="wordpiece", size=8192),
    optimizer=Optimizer(peak_lr=5e-4, b2=0.999, weight_decay=0.01, schedule="linear", final_lr=0.0, warmup_steps=30),
    training=Training(steps=300, batch_size=32),
    evaluation=Evaluation(every=100, batches=None),
    checkpoints=Checkpoints(every=100),
)
