"""What does a function do? Its docstring's first paragraph, written by a small BART that has read its code.

Command:   python train.py configs/bart_docstrings.py
           python eval.py runs/bart_docstrings --write all --beams 4 --baseline name_words
Hardware:  2 CPU cores, about M minutes
Baseline:
Result:

Functions are those of the standard library; held out are those of whole files. Code is read as words, its names divided
where an underscore or a capital does, so that what a name says can be said again.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import bart
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import Seq2SeqLM

config = Run(
    model=bart.Config(
        vocab_size=4096,
        max_length=128,
        width=256,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        num_decoder_heads=4,
        mlp_dim=1024,
        mlp_decoder_dim=1024,
        init_std=0.05,
        dropout=0.1,
        attention_dropout=0.0,
        activation_dropout=0.0,
    ),
    objective=Seq2SeqLM(source="source_words", target_length=64, label_smoothing=0.1),
    compute=Compute(unroll=3),
    directory="runs/bart_docstrings",
    data=Data(source="stdlib_docstrings", length=128),
    vocabulary=Vocabulary(kind="roberta", size=4096),
    optimizer=Optimizer(name="muon", peak_lr=2e-3, warmup_steps=50, weight_decay=0.01),
    training=Training(steps=500, batch_size=32),
    evaluation=Evaluation(every=100, batches=None),
    checkpoints=Checkpoints(every=100),
)
