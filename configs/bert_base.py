"""BERT base on Wikipedia, as in the paper (Devlin et al. 2019, appendix A.2), on 16 TPU v5e chips.

Command:   python train.py configs/bert_base.py --distributed True      (on every host)
           python train.py configs/bert_base.py --init-from runs/bert_base --directory runs/bert_base_512 \
               --data.length 512 --optimizer.peak-lr 1e-5 --optimizer.warmup-steps 1000 --optimizer.final-lr 0 \
               --training.steps 100000
           The first 90 % of the steps are taken with rows of 128 tokens; the second command takes the rest with 512.
Does it fit, with no TPU at hand:
           python train.py configs/bert_base.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4); not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper adds the BooksCorpus, no longer to be had.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Mesh, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import bert
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import Pretraining

config = Run(
    model=bert.PRESETS["bert-base-uncased"][1],
    objective=Pretraining(),
    compute=Compute(dtype="bfloat16"),
    directory="runs/bert_base",
    data=Data(
        source="tfds:wikipedia/20230601.en", train_split="train[1%:]", validation_split="train[:1%]", length=128,
        workers=8,
    ),
    vocabulary=Vocabulary(path="google-bert/bert-base-uncased"),
    optimizer=Optimizer(
        peak_lr=1e-4, schedule="linear", warmup_steps=10_000, final_lr=0.1, b2=0.999, eps=1e-6, weight_decay=0.01
    ),
    mesh=Mesh(data=-1),
    training=Training(steps=900_000, batch_size=256),
    evaluation=Evaluation(every=5000, batches=40),
    checkpoints=Checkpoints(every=5000),
)  # fmt: skip
