"""ELECTRA base on Wikipedia, with the paper's hyperparameters (Clark et al. 2020, appendix A), on 16 TPU v5e chips.

Command:   python train.py configs/electra_base.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/electra_base.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4); not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper adds the BooksCorpus, no longer to be had.
"""

from dataclasses import replace

from transformer_zoo.config import Training, Vocabulary, load_recipe
from transformer_zoo.models import electra
from transformer_zoo.objectives import ReplacedTokens

base = load_recipe("bert_base.py", beside=__file__)

config = replace(
    base,
    model=electra.PRESETS["electra-base-discriminator"][1],
    objective=ReplacedTokens(generator_size=1 / 3),
    directory="runs/electra_base",
    data=replace(base.data, length=512, packing="concat"),
    vocabulary=Vocabulary(path="google/electra-base-discriminator"),
    optimizer=replace(base.optimizer, peak_lr=2e-4, final_lr=0.0),
    training=Training(steps=766_000, batch_size=256),
)
