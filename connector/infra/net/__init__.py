"""Outbound HTTP: one client with a guard against server-side request forgery."""
