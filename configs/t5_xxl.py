"""T5 1.1 XXL (11 billion parameters) on C4, as T5 was pretrained (Raffel et al. 2020, sections 3.1.2 and 3.3.4), on
64 TPU v5p chips.

Command:   python train.py configs/t5_xxl.py --distributed True      (on every host)
Does it fit, with no TPU at hand:
           python train.py configs/t5_xxl.py --aot v5p:4x4x4
Hardware:  a v5p slice of 64 chips (4x4x4), of whose 95.73 GiB each it needs 6.2; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord.

Batches of 2048 rows are those of the paper's largest models (section 3.7). A row of 512 tokens comes of a text of 568,
of which 15 % are to be written: 114 tokens with the sentinels. There is no dropout, as in all of version 1.1.
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
