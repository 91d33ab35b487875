"""BART large on Wikipedia, as in the paper (Lewis et al. 2019, section 5), on 16 TPU v5e chips.

Command:   python train.py configs/bart_large.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/bart_large.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4), of whose 15.75 GiB each it needs 2.3; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper's 160 GB of news, books, stories and web text
           (those of RoBERTa) are more than that.

Batches of 8000 rows and 500,000 steps are the paper's, as are 30 % of the tokens masked and all sentences permuted.
"""

from dataclasses import replace

from transformer_zoo.config import Checkpoints, Evaluation, Mesh, Training, Vocabulary, load_recipe
from transformer_zoo.models import bart
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import TextInfilling

base = load_recipe("bert_base.py", beside=__file__)

config = replace(
    base,
    model=bart.PRESETS["bart-large"][1],
    objective=TextInfilling(logits_chunks=4),
    directory="runs/bart_large",
    compute=Compute(dtype="bfloat16", remat="full"),
    data=replace(base.data, length=512),
    vocabulary=Vocabulary(path="facebook/bart-large"),
    optimizer=replace(base.optimizer, peak_lr=4e-4, warmup_steps=24_000, final_lr=0.0, b2=0.98),
    mesh=Mesh(data=1, fsdp=-1),
    training=Training(steps=500_000, batch_size=8000, accumulation=50),
    evaluation=Evaluation(every=5000, batches=4),
    checkpoints=Checkpoints(every=2000),
)
