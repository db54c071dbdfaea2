"""Resumable uploads in numbered parts."""
