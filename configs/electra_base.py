"""ELECTRA base on Wikipedia, with the paper's hyperparameters (Clark et al. 2020, appendix A), on 16 TPU v5e chips.

Command:   python train.py configs/electra_base.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/electra_base.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4); not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper adds the BooksCorpus, no longer to be had.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Mesh, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import electra
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import ReplacedTokens

config = Run(
    model=electra.PRESETS["electra-base-discriminator"][1],
    objective=ReplacedTokens(generator_size=1 / 3),
    compute=Compute(dtype="bfloat16"),
    directory="runs/electra_base",
    data=Data(
        source="tfds:wikipedia/20230601.en",
        train_split="train[1%:]",
        validation_split="train[:1%]",
        length=512,
        packing="concat",
        workers=8,
    ),
    vocabulary=Vocabulary(path="google/electra-base-discriminator"),
    optimizer=Optimizer(
        peak_lr=2e-4, schedule="linear", warmup_steps=10_000, final_lr=0.0, b2=0.999, eps=1e-6, weight_decay=0.01
    ),
    mesh=Mesh(data=-1),
    training=Training(steps=766_000, batch_size=256),
    evaluation=Evaluation(every=5000, batches=40),
    checkpoints=Checkpoints(every=5000),
)
