"""Training engines, the vLLM engine, and weight transfer between them."""
