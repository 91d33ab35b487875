"""RoBERTa base on Wikipedia, with the paper's hyperparameters (Liu et al. 2019, appendix B), on 16 TPU v5e chips.

Command:   python train.py configs/roberta_base.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/roberta_base.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4); not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper has ten times as much text.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Mesh, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import roberta
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import MaskedLM

config = Run(
    model=roberta.PRESETS["roberta-base"][1],
    objective=MaskedLM(),
    compute=Compute(dtype="bfloat16"),
    directory="runs/roberta_base",
    data=Data(
        source="tfds:wikipedia/20230601.en",
        train_split="train[1%:]",
        validation_split="train[:1%]",
        length=512,
        packing="concat",
        workers=8,
    ),
    vocabulary=Vocabulary(path="FacebookAI/roberta-base"),
    optimizer=Optimizer(
        peak_lr=6e-4, schedule="linear", warmup_steps=24_000, final_lr=0.0, b2=0.98, eps=1e-6, weight_decay=0.01,
        clip_norm=None,
    ),
    mesh=Mesh(data=-1),
    training=Training(steps=500_000, batch_size=8192, accumulation=16),
    evaluation=Evaluation(every=2000, batches=4),
    checkpoints=Checkpoints(every=2000),
)  # fmt: skip
