"""Adapts the published SmolLM2 (135 M) to the source code of the Python that runs it, by adapters of rank 8 (LoRA).

Command:   python train.py configs/smollm2_lora.py
           python train.py configs/smollm2_lora.py --init-from SmolLM2-135M-Instruct.Q4_1.gguf
           python -m transformer_zoo convert runs/smollm2_lora smollm2_python
Hardware:  2 CPU cores and 11 GB of memory, about ten minutes; 2.4 M of 137 M parameters are trained
Baseline:  `eval.py MODEL --source python_stdlib --length 256 --batch-size 4 --batches 8`: 2.610 nats a token, held out
Result:    of the GGUF file, held-out loss 2.520 at step 10, 2.477 at 20, 2.463 at 30, 2.459 at 40: 0.893 bits a byte,
           from 0.948
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Logging, Lora, Optimizer, Run, Training
from transformer_zoo.models import llama
from transformer_zoo.objectives import CausalLM

config = Run(
    model=llama.Config(),
    init_from="HuggingFaceTB/SmolLM2-135M-Instruct",
    objective=CausalLM(),
    directory="runs/smollm2_lora",
    data=Data(source="python_stdlib", length=256),
    lora=Lora(rank=8, alpha=16.0),
    optimizer=Optimizer(peak_lr=1e-3, b2=0.999, schedule="linear", final_lr=0.0, warmup_steps=4, weight_decay=0.0),
    training=Training(steps=40, batch_size=4),
    evaluation=Evaluation(every=10, batches=8),
    checkpoints=Checkpoints(every=20),
    logging=Logging(every=5),
)
