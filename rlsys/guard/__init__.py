"""Moderation of prompts and answers: labels, decisions and actions."""
