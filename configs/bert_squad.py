"""Fine-tunes the published BERT base to find answers in SQuAD 1.1 (Devlin et al. 2019, section 4.2).

Command:   python train.py configs/bert_squad.py
Hardware:  one GPU or TPU chip
Result:    to be measured where the data set and the weights can be had. The paper's base model has an exact match of
           80.8 and an F1 of 88.5 on the validation set, a question at a time; here a window is judged at a time.

Batches of 32, learning rate 5e-5 and three epochs are the paper's; rows of 384 tokens, questions of 64 and answers of
at most 30 are those of the code released with it. Its windows begin 128 tokens apart, and so overlap by about 240;
these overlap by 128, which makes fewer rows of the few contexts that need several.
"""

from dataclasses import replace

from transformer_zoo.config import Checkpoints, Data, Evaluation, Training, load_recipe
from transformer_zoo.objectives import QuestionAnswering

base = load_recipe("bert_glue.py", beside=__file__)

config = replace(
    base,
    objective=QuestionAnswering(),
    directory="runs/bert_squad",
    data=Data(source="tfds:squad", length=384),
    optimizer=replace(base.optimizer, peak_lr=5e-5, warmup_steps=830),
    training=Training(steps=8300, batch_size=32),
    evaluation=Evaluation(every=1000, batches=None),
    checkpoints=Checkpoints(every=1000),
)
