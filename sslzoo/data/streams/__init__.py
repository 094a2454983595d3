"""Images in shards: tar files of WebDataset, Parquet, LitData and Hugging Face's iterable sets."""
