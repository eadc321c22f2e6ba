"""A cohort of simulated people, deformed from a template."""
