"""Byzantine workers."""
