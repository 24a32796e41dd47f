"""The course's own scaling sweep."""
