"""Vision-language models: loading, the scalar score head, and a tiny one made from scratch."""
