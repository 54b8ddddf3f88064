"""Programs that turn datasets into TFRecord files."""
