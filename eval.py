"""Evaluates a run or a published model on any text.

python eval.py runs/gpt2_stdlib
python eval.py openai-community/gpt2 --source "text:notes/*.md" --split train
"""

import sys

from transformer_zoo.commands import evaluate_command

if __name__ == "__main__":
    sys.exit(evaluate_command(sys.argv[1:]))
