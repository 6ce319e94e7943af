"""Moderation of prompts and answers, and what follows from it."""
