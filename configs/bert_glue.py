"""Fine-tunes the published BERT base on a task of GLUE (Devlin et al. 2019, section 4.1), by default MRPC.

Command:   python train.py configs/bert_glue.py
           python train.py configs/bert_glue.py --data.source tfds:glue/qnli --objective.texts question sentence \
               --training.steps 9800 --optimizer.warmup-steps 980 --directory runs/bert_qnli
           python train.py configs/bert_glue.py --data.source tfds:glue/stsb --objective.problem regression \
               --training.steps 540 --optimizer.warmup-steps 54 --directory runs/bert_stsb
Hardware:  one GPU or TPU chip
Result:    to be measured where the data set and the weights can be had. The paper's base model has an F1 of 88.9 on
           MRPC's test set, accuracy 90.5 on QNLI's.

The paper takes the best of learning rates 5e-5, 4e-5, 3e-5 and 2e-5 on the held-out split, batches of 32 and three
epochs, with a tenth of the steps for the warmup (appendix A.3 and the code released with it). Texts of the tasks:
cola, sst2: sentence; mrpc, rte, stsb, wnli: sentence1 sentence2; qqp: question1 question2; qnli: question sentence;
mnli: premise hypothesis, with --data.validation-split validation_matched.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Run, Training
from transformer_zoo.models import bert
from transformer_zoo.objectives import SequenceClassification

config = Run(
    model=bert.Config(),
    init_from="google-bert/bert-base-uncased",
    objective=SequenceClassification(texts=("sentence1", "sentence2")),
    directory="runs/bert_mrpc",
    data=Data(source="tfds:glue/mrpc", length=128),
    optimizer=Optimizer(
        peak_lr=2e-5, b2=0.999, eps=1e-6, weight_decay=0.01, schedule="linear", final_lr=0.0, warmup_steps=34
    ),
    training=Training(steps=344, batch_size=32),
    evaluation=Evaluation(every=115, batches=None),
    checkpoints=Checkpoints(every=115),
)
