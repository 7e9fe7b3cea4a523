"""The formats of exported files: each builds one from the captured model, and knows how it is read back."""
