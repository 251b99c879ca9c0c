"""Notifications of what rollouts do and wait for, to receivers that the configuration names."""
