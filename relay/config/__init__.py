"""The configuration: model, loading, and the rules across keys."""
