"""Tests of the course as files: building, checking, running and releasing notebooks."""
