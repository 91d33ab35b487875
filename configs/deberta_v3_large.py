"""DeBERTa large, version 3's architecture, as a masked language model on Wikipedia, on 16 TPU v5e chips.

Command:   python train.py configs/deberta_v3_large.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/deberta_v3_large.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4), of whose 15.75 GiB each it needs 4.5; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper has ten times as much text.

Hidden spans and hyperparameters are those of the first paper (He et al. 2021, appendix A). Version 3 was trained by
replaced tokens instead (He et al. 2023), for which its published checkpoints have no head.
"""

from dataclasses import replace

from transformer_zoo.config import Mesh, Training, Vocabulary, load_recipe
from transformer_zoo.models import deberta_v2
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import MaskedLM

base = load_recipe("bert_base.py", beside=__file__)

config = replace(
    base,
    model=deberta_v2.PRESETS["deberta-v3-large"][1],
    objective=MaskedLM(unit="spans"),
    compute=Compute(dtype="bfloat16", remat="full"),
    directory="runs/deberta_v3_large",
    data=replace(base.data, length=512, packing="concat"),
    vocabulary=Vocabulary(path="microsoft/deberta-v3-large"),
    optimizer=replace(base.optimizer, peak_lr=2e-4, final_lr=0.0),
    mesh=Mesh(data=1, fsdp=-1),
    training=Training(steps=1_000_000, batch_size=2048, accumulation=8),
)
