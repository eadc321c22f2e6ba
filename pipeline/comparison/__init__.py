"""Many reconstruction terms, trained and scored alike, at one rate."""
