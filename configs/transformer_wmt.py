"""The Transformer of 2017, big, from English to French: WMT 2014 (Vaswani et al. 2017, sections 5 and 6.1), on 8 TPU
v5e chips.

Command:   python train.py configs/transformer_wmt.py
           python eval.py runs/transformer_wmt --split test --write all --beams 4
Does it fit, with no TPU at hand:
           python train.py configs/transformer_wmt.py --aot v5e:2x4
Hardware:  a v5e slice of 8 chips (2x4), of whose 15.75 GiB each it needs 11.8; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord.
Result:    to be measured where the data set can be had. The paper's BLEU is 41.8, after 300,000 steps and with the last
           20 checkpoints averaged, of which `optimizer.ema` is this recipe's form.

The schedule is the paper's (equation 3): the rate falls with the root of the step after 4,000 of warmup, from
1 / sqrt(1024 * 4000). Its batches are of about 25,000 tokens on each side, and these rows hold as many. Dropout is 0.1,
as the paper has it for French. The two vocabularies are those of OPUS-MT: none has to be learned from 36 million
pairs.
"""

import dataclasses

from transformer_zoo.config import Checkpoints, Data, Evaluation, Mesh, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import marian
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import Seq2SeqLM

config = Run(
    model=dataclasses.replace(
        marian.PRESETS["transformer-big"][1],
        vocab_size=59514,
        pad_id=59513,
        eos_id=0,
        decoder_start_id=59513,
        dropout=0.1,
    ),
    objective=Seq2SeqLM(source="en", target="fr", target_length=256, label_smoothing=0.1, too_long="drop"),
    directory="runs/transformer_wmt",
    compute=Compute(dtype="bfloat16"),
    data=Data(source="tfds:wmt14_translate/fr-en", length=256, workers=8),
    vocabulary=Vocabulary(path="Helsinki-NLP/opus-mt-en-fr"),
    optimizer=Optimizer(
        peak_lr=4.94e-4,
        schedule="inverse_sqrt",
        warmup_steps=4000,
        b2=0.98,
        eps=1e-9,
        weight_decay=0.0,
        clip_norm=None,
        ema=0.9998,
    ),
    mesh=Mesh(data=-1),
    training=Training(steps=300_000, batch_size=128),
    evaluation=Evaluation(every=5000, batches=None),
    checkpoints=Checkpoints(every=2000),
)
