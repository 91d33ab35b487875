"""Fine-tunes the published GPT-2 (124 M) on text files of yours.

Command:   python train.py configs/gpt2_finetune.py --data.source "text:my/notes/**/*.md"
Hardware:  one GPU or TPU chip; on a 2-core CPU about 300 tokens a second.
Result:    the text is yours, so is the loss. `eval.py openai-community/gpt2 --source ...` gives the loss to beat.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Run, Training
from transformer_zoo.models import gpt2
from transformer_zoo.objectives import CausalLM

config = Run(
    model=gpt2.Config(),
    init_from="openai-community/gpt2",
    objective=CausalLM(),
    directory="runs/gpt2_finetune",
    data=Data(source="text:*.md", length=512),
    optimizer=Optimizer(peak_lr=5e-5, b2=0.999, schedule="linear", final_lr=0.0, warmup_steps=20, weight_decay=0.01),
    training=Training(steps=200, batch_size=8),
    evaluation=Evaluation(every=50, batches=None),
    checkpoints=Checkpoints(every=50),
)
