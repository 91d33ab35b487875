"""Published weights, in and out (weight map, safetensors, the hub, config.json), and checkpoints of training runs."""
