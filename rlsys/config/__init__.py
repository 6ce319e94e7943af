"""Recipes: typed, strict, each default in one place."""
