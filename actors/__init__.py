"""The Ray side of rlsys: placement, groups, one thin class per process, the command line."""
