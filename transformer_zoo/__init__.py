"""transformer_zoo: BERT, GPT, T5 and their kin in JAX and Flax, on a laptop, a GPU or a TPU slice."""
