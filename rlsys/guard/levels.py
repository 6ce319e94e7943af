"""How severe, and what follows."""

LEVELS = ("none", "minor", "moderate", "severe")
"""Severities 0..3."""

ACTIONS = ("pass", "annotate", "regenerate", "refuse")
"""What a level may lead to, from the mildest."""
