"""Text: the contexts that a generator reads, and the embeddings that distances see."""
