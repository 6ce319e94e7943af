"""How severe, and what follows."""

LEVELS = ("none", "minor", "moderate", "severe")
"""Severities 0..3."""

ACTIONS = ("pass", "annotate", "regenerate", "refuse")
"""What a level may lead to, from the mildest."""

REFUSAL = "I cannot help with this."
"""Takes the place of an answer that is refused, unless a recipe has another."""
