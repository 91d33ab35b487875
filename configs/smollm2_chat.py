"""Tunes the published SmolLM2 (135 M, Instruct) on conversations, by adapters of rank 8: the loss is of answers alone.

Command:   python train.py configs/smollm2_chat.py
           python train.py configs/smollm2_chat.py --init-from SmolLM2-135M-Instruct.Q4_1.gguf
           python -m transformer_zoo chat runs/smollm2_chat
Hardware:  2 CPU cores and 11 GB of memory, about five minutes; 2.4 M of 137 M parameters are trained
Baseline:  `eval.py MODEL --objective supervised-fine-tuning --source jsonl:examples/conversations.jsonl --split
           validation --length 256`: 3.282 nats a token of an answer, held out
Result:    of the GGUF file, held-out loss 2.611 at step 10, 2.521 at 20, 2.485 at 30; 46 % of the tokens right, from 37

A file of your own has a conversation in each line, {"messages": [{"role": "user", "content": ...}, {"role":
"assistant", "content": ...}, ...]}: --data.source jsonl:FILE. ShareGPT's has them in another field,
--objective.fields conversations; and for pairs of texts name both, --objective.fields prompt completion.
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Logging, Lora, Optimizer, Run, Training
from transformer_zoo.models import llama
from transformer_zoo.objectives import SupervisedFineTuning

config = Run(
    model=llama.Config(),
    init_from="HuggingFaceTB/SmolLM2-135M-Instruct",
    objective=SupervisedFineTuning(),
    directory="runs/smollm2_chat",
    data=Data(source="jsonl:examples/conversations.jsonl", length=256),
    lora=Lora(rank=8, alpha=16.0),
    optimizer=Optimizer(peak_lr=1e-3, b2=0.999, schedule="linear", final_lr=0.0, warmup_steps=4, weight_decay=0.0),
    training=Training(steps=30, batch_size=4),
    evaluation=Evaluation(every=10, batches=None),
    checkpoints=Checkpoints(every=10),
    logging=Logging(every=5),
)
