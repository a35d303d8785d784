"""Parts of the study of critic slopes."""
