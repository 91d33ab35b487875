"""DistilBERT base from BERT base on Wikipedia (Sanh et al. 2019), on 16 TPU v5e chips.

Command:   python train.py configs/distilbert_base.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/distilbert_base.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4); not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper adds the BooksCorpus, no longer to be had.
The losses have the weights of the code that was published with the paper, and the student begins as the layers that it
begins as there. That code compares guesses at every token: --objective.everywhere True. About three epochs.
"""

from dataclasses import replace

from transformer_zoo.config import Checkpoints, Evaluation, Training, load_recipe
from transformer_zoo.models import distilbert
from transformer_zoo.objectives import Distillation

base = load_recipe("bert_base.py", beside=__file__)

config = replace(
    base,
    model=distilbert.PRESETS["distilbert-base-uncased"][1],
    objective=Distillation(teacher="bert-base-uncased", layers=(0, 2, 4, 7, 9, 11)),
    directory="runs/distilbert_base",
    data=replace(base.data, length=512, packing="concat"),
    optimizer=replace(
        base.optimizer, peak_lr=5e-4, warmup_steps=2000, final_lr=0.0, b2=0.98, weight_decay=0.0, clip_norm=5.0
    ),
    training=Training(steps=40_000, batch_size=512),
    evaluation=Evaluation(every=2000, batches=40),
    checkpoints=Checkpoints(every=2000),
)
