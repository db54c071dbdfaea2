"""Requests remembered by their idempotency key."""
