"""Prompts, preference pairs and pixels."""
