"""The tests; `from tests.browser.lab import ...` finds the harness."""
