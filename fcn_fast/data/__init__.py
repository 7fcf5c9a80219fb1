"""Images, and what the data sets say of their classes."""
