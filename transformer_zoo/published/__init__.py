"""How families are published in the Hugging Face layout: strings and small functions, which know nothing of arrays."""

from transformer_zoo.published.spec import CLASSES, Key, Published

__all__ = ["CLASSES", "Key", "Published"]
