"""jaxmedian."""
