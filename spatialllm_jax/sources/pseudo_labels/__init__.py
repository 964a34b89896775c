"""Plain images -> scenes of estimated oriented boxes (paper, Supplement A: the OpenImages path)."""
