"""Published weights, in and out (file formats, weight map, config.json, the hub), and checkpoints of training runs."""
