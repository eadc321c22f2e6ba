"""The quality report of a store: numbers, pictures and the page."""
