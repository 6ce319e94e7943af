"""Where roles run: groups of ranks behind one protocol, and their in-process form."""
