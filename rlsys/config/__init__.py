"""Recipes: typed keys with defaults, documentation and checks."""
