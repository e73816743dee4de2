"""The rules of the configuration that go beyond the shape of single keys."""
