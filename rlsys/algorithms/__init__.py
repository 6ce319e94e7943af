"""Formulas as pure functions of tensors and scalars. Imports torch and nothing else."""
