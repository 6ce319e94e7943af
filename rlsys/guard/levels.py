"""Severity levels, and the actions that a level can lead to."""

LEVELS = ("none", "minor", "moderate", "severe")
"""Severities 0..3."""

ACTIONS = ("pass", "annotate", "regenerate", "refuse")
"""Actions on an answer, from the mildest."""

REFUSAL = "I cannot help with this."
"""Replaces a refused answer, unless the recipe has another text."""
