"""A classifier of the texts in a CSV of one's own: a small BERT from scratch, or a published model fine-tuned.

Command:   python train.py configs/classify.py --data.source csv:examples/docstrings.csv
           python train.py configs/classify.py --data.source csv:reviews.csv:body --objective.label stars \
               --init-from distilbert-base-uncased --optimizer.peak-lr 5e-5 --directory runs/stars
Hardware:  2 CPU cores, about a minute for the example from scratch
Baseline:  the largest of the example's three classes is 38.2 % of the held-out texts
Result:    accuracy on held-out texts of the example, from scratch, 0.629 at step 50, 0.665 at 75, 0.729 at 100,
           0.759 at 114, macro F1 0.761

KEY in csv:GLOB:KEY is the column with the texts, objective.label the one with the labels, whose names are found in the
data. A fifth of the rows is held out. Longer texts need a longer data.length, and from scratch model.max-length too.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import bert
from transformer_zoo.objectives import SequenceClassification

config = Run(
    model=bert.Config(
        vocab_size=2048, max_length=128, width=128, num_layers=2, num_heads=4, mlp_dim=512, init_std=0.05,
    ),
    objective=SequenceClassification(),
    directory="runs/classify",
    data=Data(source="csv:examples/docstrings.csv", length=128, validation_share=0.2),
    vocabulary=Vocabulary(kind="wordpiece", size=2048, lower_case=True),
    optimizer=Optimizer(peak_lr=1e-3, b2=0.999, weight_decay=0.01, schedule="linear", final_lr=0.0, warmup_steps=10),
    training=Training(epochs=5, batch_size=32),
    evaluation=Evaluation(every=25, batches=None),
    checkpoints=Checkpoints(every=25),
)  # fmt: skip
