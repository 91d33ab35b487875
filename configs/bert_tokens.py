"""Of what kind is each Python token: name, keyword, operator, number, string or comment? From scratch, or pretrained.

Command:   python train.py configs/bert_tokens.py
           python train.py configs/bert_tokens.py --init-from runs/bert_stdlib --directory runs/bert_tokens_tuned
Hardware:  2 CPU cores, about two minutes
Baseline:  names are 33.8 % of the held-out tokens; who guesses each token's most frequent kind is right in 76.5 %
Result:    accuracy on held-out functions, from scratch, 0.806 at step 50, 0.822 at 100, 0.837 at 150, macro F1 0.803;
           after configs/bert_stdlib.py 0.843, 0.860, 0.880, macro F1 0.852

The tokens are the model's own: a string or a comment has many. The architecture is that of configs/bert_stdlib.py, and
what is held out there is held out here.
"""

from dataclasses import replace

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Training, load_recipe
from transformer_zoo.objectives import TokenClassification

base = load_recipe("bert_stdlib.py", beside=__file__)

config = replace(
    base,
    objective=TokenClassification(subwords="all"),
    directory="runs/bert_tokens",
    data=Data(source="stdlib_tokens", length=128),
    optimizer=Optimizer(peak_lr=5e-4, b2=0.999, weight_decay=0.01, schedule="linear", final_lr=0.0, warmup_steps=20),
    training=Training(steps=150, batch_size=16),
    evaluation=Evaluation(every=50, batches=None),
    checkpoints=Checkpoints(every=50),
)
