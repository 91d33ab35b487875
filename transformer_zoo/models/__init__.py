"""One file a family: configuration, presets, block, model, and the names of its published weights."""
