"""What operators do and see, as the features in control_plane/ tell it."""

from pytest_bdd import scenarios

scenarios("control_plane")
