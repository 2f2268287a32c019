"""The Qwen-1 model: checkpoint, tokenizer, prompt and maths. Knows nothing of queues or SQL."""
