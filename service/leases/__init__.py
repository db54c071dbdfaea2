"""Leases: how workers take jobs, keep them and are fenced off."""
