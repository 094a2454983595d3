"""Text data: files of lines, STS-B, Hugging Face data sets, and tokenizers."""
