"""How weights travel from trainers to engines. One file per transport."""
