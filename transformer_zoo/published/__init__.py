"""How families are published: strings and small functions, without arrays. Most are in the Hugging Face layout."""

from transformer_zoo.published.gguf import Gguf
from transformer_zoo.published.spec import CLASSES, Key, Published, first_id

__all__ = ["CLASSES", "Gguf", "Key", "Published", "first_id"]
