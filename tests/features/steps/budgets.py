"""Steps to come."""
