"""Write the tokenizer of a checkpoint of ours in the form that lm-eval loads: python tokenizer.py CHECKPOINT FOLDER"""

import sys
from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

# The pattern of Qwen's own tokenization_qwen.py.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

checkpoint, folder = map(Path, sys.argv[1:])
converted = TikTokenConverter(
    vocab_file=str(checkpoint / "qwen.tiktoken"),
    pattern=PATTERN,
    additional_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
).converted()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=converted, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
)
tokenizer.save_pretrained(folder)
