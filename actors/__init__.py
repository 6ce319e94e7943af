"""The Ray side of rlsys: placement, groups, one thin class per process, recipes, the CLI."""
