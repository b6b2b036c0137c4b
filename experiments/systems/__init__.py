"""Speed, bytes, memory, processes, kills."""
