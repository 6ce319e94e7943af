"""One file per method. No tensor maths beyond calling ``rlsys.algorithms``, no Ray, no retry."""
