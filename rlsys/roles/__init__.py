"""One file per role: protocol for drivers, worker of a rank, and the typed handle between them."""
