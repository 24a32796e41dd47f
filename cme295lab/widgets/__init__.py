"""Views that react, and the static pictures that stand in for them."""
