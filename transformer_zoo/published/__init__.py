"""How families are published in the Hugging Face layout: strings and small functions, without arrays."""

from transformer_zoo.published.spec import CLASSES, Key, Published, first_id

__all__ = ["CLASSES", "Key", "Published", "first_id"]
