"""BERT large on Wikipedia, as in the paper (Devlin et al. 2019, appendix A.2), on 16 TPU v5e chips.

Command:   python train.py configs/bert_large.py --distributed True      (on every host)
           The paper takes the last tenth of the steps with rows of 512 tokens: configs/bert_base.py shows how.
Does it fit, with no TPU at hand:
           python train.py configs/bert_large.py --aot v5e:4x4
Hardware:  a v5e slice of 16 chips (4x4), of whose 15.75 GiB each it needs 4.8; not yet trained there.
Data:      needs the TFDS data set prepared as ArrayRecord. The paper adds the BooksCorpus, no longer to be had.
"""

from dataclasses import replace

from transformer_zoo.config import Mesh, Vocabulary, load_recipe
from transformer_zoo.models import bert

base = load_recipe("bert_base.py", beside=__file__)

config = replace(
    base,
    model=bert.PRESETS["bert-large-uncased"][1],
    directory="runs/bert_large",
    vocabulary=Vocabulary(path="google-bert/bert-large-uncased"),
    mesh=Mesh(data=1, fsdp=-1),
)
