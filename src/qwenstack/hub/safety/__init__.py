"""What a file could do to whoever downloads it, told from its bytes; nothing is ever loaded."""
