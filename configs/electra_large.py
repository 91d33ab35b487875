"""ELECTRA large on Wikipedia, with the paper's hyperparameters (Clark et al. 2020, appendix A), on 16 TPU v5e chips.

Command:   python train.py configs/electra_large.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/electra_large.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4), of whose 15.75 GiB each it needs 3.5; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper has XLNet's, ten times as much text.
"""

from dataclasses import replace

from transformer_zoo.config import Mesh, Training, Vocabulary, load_recipe
from transformer_zoo.models import electra
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import ReplacedTokens

base = load_recipe("bert_base.py", beside=__file__)

config = replace(
    base,
    model=electra.PRESETS["electra-large-discriminator"][1],
    objective=ReplacedTokens(rate=0.25, generator_size=0.25),
    compute=Compute(dtype="bfloat16", remat="dots"),
    directory="runs/electra_large",
    data=replace(base.data, length=512, packing="concat"),
    vocabulary=Vocabulary(path="google/electra-large-discriminator"),
    optimizer=replace(base.optimizer, peak_lr=2e-4, final_lr=0.0),
    mesh=Mesh(data=1, fsdp=-1),
    training=Training(steps=400_000, batch_size=2048, accumulation=16),
)
