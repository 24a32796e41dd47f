"""Tests in a real browser: see `lab.py` for the harness and `fixtures.py` for what tests ask for."""
