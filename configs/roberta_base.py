"""RoBERTa base on Wikipedia, with the paper's hyperparameters (Liu et al. 2019, appendix B), on 16 TPU v5e chips.

Command:   python train.py configs/roberta_base.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/roberta_base.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4); not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper has ten times as much text.
"""

from dataclasses import replace

from transformer_zoo.config import Checkpoints, Evaluation, Training, Vocabulary, load_recipe
from transformer_zoo.models import roberta
from transformer_zoo.objectives import MaskedLM

base = load_recipe("bert_base.py", beside=__file__)

config = replace(
    base,
    model=roberta.PRESETS["roberta-base"][1],
    objective=MaskedLM(),
    directory="runs/roberta_base",
    data=replace(base.data, length=512, packing="concat"),
    vocabulary=Vocabulary(path="FacebookAI/roberta-base"),
    optimizer=replace(base.optimizer, peak_lr=6e-4, warmup_steps=24_000, final_lr=0.0, b2=0.98, clip_norm=None),
    training=Training(steps=500_000, batch_size=8192, accumulation=16),
    evaluation=Evaluation(every=2000, batches=4),
    checkpoints=Checkpoints(every=2000),
)
