"""New tokens from a model that decodes."""
