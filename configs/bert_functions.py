"""Which of 20 packages of the standard library does a function come from? From scratch, or after pretraining.

Command:   python train.py configs/bert_functions.py
           python train.py configs/bert_functions.py --init-from runs/bert_stdlib --directory runs/bert_functions_tuned
Hardware:  2 CPU cores, about three minutes
Baseline:  the largest package is 16.3 % of the held-out functions
Result:    accuracy on held-out functions, from scratch, 0.300 at step 100, 0.493 at 200, 0.562 at 300, macro F1 0.327;
           after configs/bert_stdlib.py 0.603, 0.644, 0.674, macro F1 0.458

The architecture is that of configs/bert_stdlib.py. A fifth of each package's functions is held out, in whole files.
"""

from dataclasses import replace

from transformer_zoo.config import Data, Evaluation, Optimizer, Training, load_recipe
from transformer_zoo.objectives import SequenceClassification

base = load_recipe("bert_stdlib.py", beside=__file__)

config = replace(
    base,
    objective=SequenceClassification(),
    directory="runs/bert_functions",
    data=Data(source="stdlib_functions", length=128),
    optimizer=Optimizer(peak_lr=5e-4, b2=0.999, weight_decay=0.01, schedule="linear", final_lr=0.0, warmup_steps=30),
    training=Training(steps=300, batch_size=32),
    evaluation=Evaluation(every=100, batches=None),
)
