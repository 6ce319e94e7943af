"""Training engines, the vLLM rollout engine, and the rank-level workers built on them."""
