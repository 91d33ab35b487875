"""From text to batches: documents (`sources`, `stdlib`), tokens (`tokenizers`), rows (`packing`; masked: `corruption`,
`sentences`; with labels: `labelled`; with targets: `seq2seq`, `denoising`; of messages: `conversations`), batches
(`pipeline`).

NumPy, grain, TFDS and the tokenizer libraries; nothing here knows a model, and TensorFlow is never imported.
"""
