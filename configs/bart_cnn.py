"""Fine-tunes the published BART large to summarise the news: CNN/DailyMail (Lewis et al. 2019, section 5.3).

Command:   python train.py configs/bart_cnn.py
           python eval.py runs/bart_cnn --split test --write all --beams 4
Does it fit, with no TPU at hand:
           python train.py configs/bart_cnn.py --aot v5e:2x4
Hardware:  a v5e slice of 8 chips (2x4), of whose 15.75 GiB each it needs 3.1; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord.
Result:    to be measured where the data set and the weights can be had. The paper's ROUGE-1, -2 and -L are 44.2, 21.3
           and 40.9, with the last divided by sentences.

The learning rate, its schedule, 20,000 steps and label smoothing are those of the code released with the paper. A batch
of 64 rows holds about as much as its batches of 65,536 tokens.
"""

import dataclasses

from transformer_zoo.config import Checkpoints, Data, Evaluation, Mesh, Optimizer, Run, Training
from transformer_zoo.models import bart
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import Seq2SeqLM

config = Run(
    model=dataclasses.replace(bart.PRESETS["bart-large"][1], activation_dropout=0.0),
    init_from="facebook/bart-large",
    objective=Seq2SeqLM(source="article", target="highlights", target_length=256, label_smoothing=0.1),
    directory="runs/bart_cnn",
    compute=Compute(dtype="bfloat16", remat="full"),
    data=Data(source="tfds:cnn_dailymail", length=1024, workers=8),
    optimizer=Optimizer(
        peak_lr=3e-5, schedule="linear", warmup_steps=500, final_lr=0.0, b2=0.999, weight_decay=0.01, clip_norm=0.1
    ),
    mesh=Mesh(data=1, fsdp=-1),
    training=Training(steps=20_000, batch_size=64),
    evaluation=Evaluation(every=1000, batches=20),
    checkpoints=Checkpoints(every=1000),
)
