"""Evaluates a run or a published model on any text.

python eval.py runs/gpt2_stdlib
python eval.py openai-community/gpt2 --source "text:notes/*.md"
python eval.py runs/t5_docstrings --write 200 --beams 4
"""

import sys

from transformer_zoo.pages import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()
    from transformer_zoo.commands import evaluate_command
    from transformer_zoo.messages import show_warnings_plainly

    show_warnings_plainly()
    sys.exit(evaluate_command(sys.argv[1:]))
