"""Risk disentanglement and AI feedback: what a judge is asked, and what its words mean."""
