"""What the families share: leaves without knowledge of any family. See `attention` for the alphabet of shapes."""

from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.embedding import Embedding, Table
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.output import Output
from transformer_zoo.nn.post_norm import PostNormBlock
from transformer_zoo.nn.stack import stack

__all__ = ["Attention", "Cache", "Compute", "Embedding", "Mask", "Output", "PostNormBlock", "Table", "stack"]
