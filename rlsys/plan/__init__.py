"""What a recipe needs before it runs: memory by process, tokens, operations, time."""
