"""Text in, answers out: a reader for each task, and the engine that runs them."""
