"""What holds for every test: no verdict depends on how long something took."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
