"""How good images are: pure functions and the networks that judge them."""
