"""Trains a model by a recipe.

    python train.py configs/gpt2_stdlib.py --optimizer.peak-lr 3e-4 --mesh.fsdp 4
    python train.py configs/gpt2_stdlib.py --help            every setting, with its meaning and its value in the recipe
    python train.py configs/gpt2_xl.py --aot v5e:4x4         does it fit a TPU slice? No TPU needed

The same command resumes a run that was stopped.
"""

import sys

if __name__ == "__main__":
    from transformer_zoo.interrupts import end_at_once, leave

    end_at_once()
    from transformer_zoo.pages import use_huge_pages

    use_huge_pages()
    from transformer_zoo.commands import train
    from transformer_zoo.messages import show_warnings_plainly

    show_warnings_plainly()
    leave(train(sys.argv[1:]))
