"""The life of jobs, as the features in data_plane/ tell it."""

from pytest_bdd import scenarios

scenarios("data_plane")
