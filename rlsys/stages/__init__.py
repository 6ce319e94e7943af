"""Stage kinds, one file each (keys, run function, report), and the execution of a recipe."""
