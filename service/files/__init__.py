"""Files of models, datasets, uploads and artifacts."""
