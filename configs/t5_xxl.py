"""T5 1.1 XXL (11 billion parameters) on C4, trained as configs/t5_xl.py is, on 64 TPU v5p chips.

Command:   python train.py configs/t5_xxl.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/t5_xxl.py --aot v5p:4x4x4
Hardware:  a v5p slice of 64 chips (4x4x4), of whose 95.73 GiB each it needs 6.2; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord.
"""

from dataclasses import replace

from transformer_zoo.config import Vocabulary, load_recipe
from transformer_zoo.models import t5

base = load_recipe("t5_xl.py", beside=__file__)

config = replace(
    base,
    model=replace(t5.PRESETS["t5-v1_1-xxl"][1], dropout=0.0),
    directory="runs/t5_xxl",
    vocabulary=Vocabulary(path="google/t5-v1_1-xxl"),
)
