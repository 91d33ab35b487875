"""T5 1.1 XL (2.8 billion parameters) on C4, as T5 was pretrained (Raffel et al. 2020, sections 3.1.2 and 3.3.4), on
64 TPU v5e chips.

Command:   python train.py configs/t5_xl.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/t5_xl.py --aot v5e:8x8
Hardware:  a v5e slice of 64 chips (8x8), of whose 15.75 GiB each it needs 2.5; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord.

Batches of 2048 rows are those of the paper's largest models (section 3.7). A row of 512 tokens comes of a text of 568,
of which 15 % are to be written: 114 tokens with the sentinels. There is no dropout, as in all of version 1.1.
"""

import dataclasses

from transformer_zoo.config import Checkpoints, Data, Evaluation, Mesh, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import t5
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import SpanCorruption

config = Run(
    model=dataclasses.replace(t5.PRESETS["t5-v1_1-xl"][1], dropout=0.0),
    objective=SpanCorruption(),
    directory="runs/t5_xl",
    compute=Compute(dtype="bfloat16", remat="full"),
    data=Data(source="tfds:c4/en", length=512, packing="concat", workers=8),
    vocabulary=Vocabulary(path="google/t5-v1_1-xl"),
    optimizer=Optimizer(name="adafactor", peak_lr=1e-2, schedule="inverse_sqrt", warmup_steps=10_000, weight_decay=0.0),
    mesh=Mesh(data=1, fsdp=-1),
    training=Training(steps=1_000_000, batch_size=2048, accumulation=4),
    evaluation=Evaluation(every=5000, batches=20),
    checkpoints=Checkpoints(every=2000),
)
