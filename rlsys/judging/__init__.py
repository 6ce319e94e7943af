"""Risk disentanglement and AI feedback: prompts to a judge, parsed replies, preference pairs."""
