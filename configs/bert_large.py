"""BERT large on Wikipedia, as in the paper (Devlin et al. 2019, appendix A.2), on 16 TPU v5e chips.

Command:   python train.py configs/bert_large.py --distributed True      (on every host)
           The paper takes the last tenth of the steps with rows of 512 tokens: configs/bert_base.py shows how.
Does it fit, with no TPU at hand:
           python train.py configs/bert_large.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4), of whose 15.75 GiB each it needs 4.8; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper adds the BooksCorpus, no longer to be had.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Mesh, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import bert
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import Pretraining

config = Run(
    model=bert.PRESETS["bert-large-uncased"][1],
    objective=Pretraining(),
    compute=Compute(dtype="bfloat16"),
    directory="runs/bert_large",
    data=Data(
        source="tfds:wikipedia/20230601.en",
        train_split="train[1%:]",
        validation_split="train[:1%]",
        length=128,
        workers=8,
    ),
    vocabulary=Vocabulary(path="google-bert/bert-large-uncased"),
    optimizer=Optimizer(
        peak_lr=1e-4, schedule="linear", warmup_steps=10_000, final_lr=0.1, b2=0.999, eps=1e-6, weight_decay=0.01
    ),
    mesh=Mesh(data=1, fsdp=-1),
    training=Training(steps=900_000, batch_size=256),
    evaluation=Evaluation(every=5000, batches=40),
    checkpoints=Checkpoints(every=5000),
)
