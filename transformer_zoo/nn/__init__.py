"""What the families share: leaves without knowledge of any family. See `attention` for the alphabet of shapes."""

from transformer_zoo.nn.architecture import Architecture
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.decoder import Decoder
from transformer_zoo.nn.embedding import Embedding, TokenEmbedding
from transformer_zoo.nn.encoder import Encoder, EncoderConfig, Inputs
from transformer_zoo.nn.encoder_decoder import EncoderDecoder
from transformer_zoo.nn.heads import Head
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.output import Output
from transformer_zoo.nn.post_norm import PostNormBlock, PostNormConfig, PostNormEncoder
from transformer_zoo.nn.stack import stack

__all__ = [
    "Architecture", "Attention", "Cache", "Compute", "Decoder", "Embedding", "Encoder", "EncoderConfig",
    "EncoderDecoder", "Head", "Inputs", "Mask", "Output", "PostNormBlock", "PostNormConfig", "PostNormEncoder",
    "TokenEmbedding", "stack",
]  # fmt: skip
