"""One file per stage kind: what it needs, how it runs, what it shows. And what runs a recipe."""
