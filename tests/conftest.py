"""What holds for every suite."""

from hypothesis import settings

# Nothing timed decides a test: a busy machine must not fail a property.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
