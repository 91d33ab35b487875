"""The Transformer of 2017, small, from English to French: the messages of this machine's programs.

Command:   python train.py configs/transformer_gettext.py
           python eval.py runs/transformer_gettext --write all --beams 4 --batch-size 50
Hardware:  2 CPU cores, about twelve minutes
Baseline:  the source, taken for its translation, has a BLEU of 21.8: signs, numbers and names stay as they are
Result:    on held-out catalogues, BLEU 26.8 at step 750 and 28.3 at 1000, greedily; 32.4 at 1500 with 4 beams; the
           cross entropy there is 2.42, 2.27 and 2.12 nats a token

Held out are the messages of whole programs. What there is depends on the machine: of a Debian system with some Python
packages 45,766 pairs, and 5,265 held out. Schedule and label smoothing are those of Vaswani et al. 2017 (sections
5.3 and 5.4); the steps are Muon's, with which so short a run gets further than with Adam.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import marian
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import Seq2SeqLM

config = Run(
    model=marian.Config(
        vocab_size=6000, max_length=192, width=256, num_layers=3, num_decoder_layers=3, num_heads=4,
        num_decoder_heads=4, mlp_dim=1024, mlp_decoder_dim=1024, activation="relu", pad_id=0, eos_id=1,
        decoder_start_id=0, forced_eos_id=None,
    ),
    objective=Seq2SeqLM(target_length=160, label_smoothing=0.1),
    compute=Compute(unroll=3),
    directory="runs/transformer_gettext",
    data=Data(source="gettext_catalogues", length=128),
    vocabulary=Vocabulary(kind="t5", size=6000),
    optimizer=Optimizer(name="muon", peak_lr=2e-3, schedule="inverse_sqrt", warmup_steps=100, weight_decay=0.0),
    training=Training(steps=1000, batch_size=16),
    evaluation=Evaluation(every=100),
    checkpoints=Checkpoints(every=250),
)  # fmt: skip
