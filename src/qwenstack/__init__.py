"""QwenStack: the stack around Qwen models, as software you own."""
